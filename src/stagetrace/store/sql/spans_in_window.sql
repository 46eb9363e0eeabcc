-- `spans` of a selection by time alone. Apart from the other, or every question would look each trace up: twice the time.
CREATE VIEW spans AS
FROM every WHERE start_unix_nano >= getvariable('since_ns') AND start_unix_nano < getvariable('until_ns');
