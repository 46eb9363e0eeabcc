-- How the time in which an instance has requests in flight divides among them: each moment in equal parts among those in
-- flight, by weight. `sixteenths`: of a nanosecond. Whole numbers, so that no order of adding up matters; requests of one
-- group by their weight. Of [since, until) alone, so that several of these add up to a longer one: a request counts where
-- it starts. An instance is a host,
-- else a process. Needs `service`, `host.name` and `service.instance.id` in what it is grouped by. The costliest groups alone.
WITH events AS (
    SELECT
        {by} coalesce(breached, false) AS is_breach, weight, start_unix_nano >= $since AS is_own,
        end_unix_nano < start_unix_nano AS is_negative, unnest([1, -1]) AS step,
        unnest([greatest(start_unix_nano, $since), least(greatest(start_unix_nano, end_unix_nano), $until)]) AS moment
    FROM {requests}
    WHERE start_unix_nano < $until AND (start_unix_nano >= $since OR end_unix_nano > $since)
),
counted AS (
    SELECT
        *, sum(step) OVER flow - step AS before, sum(step * weight) OVER flow - step * weight AS heavy,
        moment - lag(moment) OVER flow AS gap
    FROM events
    WINDOW flow AS (PARTITION BY service, coalesce(nullif("host.name", ''), "service.instance.id") ORDER BY moment ROWS UNBOUNDED PRECEDING)
),
-- With peers: events of one time are in no order.
shared AS (
    SELECT
        *, sum(CASE WHEN before > 0 THEN floor(16 * (gap / heavy))::HUGEINT ELSE 0 END) OVER (
            PARTITION BY service, coalesce(nullif("host.name", ''), "service.instance.id") ORDER BY moment
        ) AS upto
    FROM counted
)
SELECT
    {by} is_breach, weight, count(*) FILTER (WHERE is_own) // 2 AS stored,
    count(*) FILTER (WHERE is_own AND is_negative) // 2 AS negative, -sum(step * upto) AS sixteenths,
    min(moment) AS first, max(moment) AS last
FROM shared
GROUP BY ALL
ORDER BY sixteenths DESC
LIMIT $most
