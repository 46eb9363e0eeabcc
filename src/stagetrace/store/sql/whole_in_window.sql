-- The spans of a selection by time alone, with all that `loaded` has. Apart from the other, or every question would look each
-- trace up: twice the time.
CREATE VIEW whole AS
FROM loaded WHERE start_unix_nano >= getvariable('since_ns') AND start_unix_nano < getvariable('until_ns');
