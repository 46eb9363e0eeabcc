-- How the time in which an instance has requests in flight divides among them: each moment in equal parts among those in
-- flight, by weight. `sixteenths`: of a nanosecond. Whole numbers, so that no order of adding up matters; requests of one
-- group, which `host.name` and `service.instance.id` belong to, by their weight. Of [since, until) alone, so that several
-- of these add up to a longer one: a request counts where it starts. An instance is a host, else a process. Needs `service`
-- in what it is grouped by. The costliest groups alone.
WITH grouped AS (
    SELECT
        {by} of_resource, coalesce(breached, false) AS is_breach, weight, start_unix_nano >= $since AS is_own,
        end_unix_nano < start_unix_nano AS is_negative, list(greatest(start_unix_nano, $since)) AS begins,
        list(least(greatest(start_unix_nano, end_unix_nano), $until)) AS ends
    FROM {requests}
    WHERE start_unix_nano < $until AND (start_unix_nano >= $since OR end_unix_nano > $since)
    GROUP BY ALL
),
-- Resources are few, and long: they are read once they are grouped by.
known AS (
    SELECT
        * EXCLUDE (of_resource), {resource}['host.name'] AS "host.name",
        {resource}['service.instance.id'] AS "service.instance.id"
    FROM grouped
),
-- Two numbers stand for all columns, so that what is sorted is small.
numbered AS MATERIALIZED (
    SELECT
        *, row_number() OVER () AS number,
        dense_rank() OVER (ORDER BY service, coalesce(nullif("host.name", ''), "service.instance.id")) AS place
    FROM known
),
events AS (
    SELECT number, place, weight, 1 AS step, unnest(begins) AS moment FROM numbered
    UNION ALL
    SELECT number, place, weight, -1, unnest(ends) FROM numbered
),
counted AS (
    SELECT
        *, sum(step) OVER flow - step AS before, sum(step * weight) OVER flow - step * weight AS heavy,
        moment - lag(moment) OVER flow AS gap
    FROM events
    WINDOW flow AS (PARTITION BY place ORDER BY moment ROWS UNBOUNDED PRECEDING)
),
-- With peers: events of one time are in no order.
shared AS (
    SELECT
        number, step, moment, sum(CASE WHEN before > 0 THEN floor(16 * (gap / heavy))::HUGEINT ELSE 0 END) OVER (
            PARTITION BY place ORDER BY moment
        ) AS upto
    FROM counted
),
summed AS (
    SELECT number, -sum(step * upto) AS sixteenths, min(moment) AS first, max(moment) AS last FROM shared GROUP BY number
)
SELECT
    {by} "host.name", "service.instance.id", is_breach, weight,
    coalesce(sum(len(begins)) FILTER (WHERE is_own), 0) AS stored,
    coalesce(sum(len(begins)) FILTER (WHERE is_own AND is_negative), 0) AS negative, sum(sixteenths) AS sixteenths,
    min(first) AS first, max(last) AS last
FROM summed JOIN numbered USING (number)
GROUP BY ALL
ORDER BY sixteenths DESC
LIMIT $most
