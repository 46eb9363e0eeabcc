-- Of each service, path, objective and target: stretches of time in which too many judged requests were breaches. Time is
-- divided into buckets of `width_ns` from `since_ns` on. A bucket is bad with `least` breaches that are at least the share that
-- `shares` has for its objective (text with target, in `objectives`); bad ones with at most `gap` buckets between them are one
-- incident, which counts what lies between them too. Requests between an odd edge of `excluded` and the next one do not count.
-- At most `most` come, those with the most breaches, of `incidents`.
WITH buckets AS (
    SELECT
        service, path, objective, target, (start_unix_nano - $since_ns) // $width_ns AS bucket, sum(weight) AS judged,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches
    FROM {verdicts}
    WHERE breached IS NOT NULL AND len(list_filter($excluded::BIGINT[], lambda edge: edge <= start_unix_nano)) % 2 = 0
    GROUP BY ALL
),
marked AS (
    SELECT
        *,
        coalesce(
            breaches >= $least
            AND breaches >= judged * list_extract(
                $shares::DOUBLE[], list_position($objectives::VARCHAR[], concat_ws(' for ', objective, target))
            ),
            false
        ) AS bad
    FROM buckets
),
near AS (
    SELECT
        *, max(CASE WHEN bad THEN bucket END) OVER (each ORDER BY bucket) AS before,
        min(CASE WHEN bad THEN bucket END) OVER (each ORDER BY bucket DESC) AS behind,
        max(CASE WHEN bad THEN bucket END)
            OVER (each ORDER BY bucket ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS last_one
    FROM marked
    WINDOW each AS (PARTITION BY service, path, objective, target)
),
numbered AS (
    SELECT
        *, sum(CASE WHEN bad AND coalesce(bucket - last_one - 1 > $gap, true) THEN 1 ELSE 0 END)
            OVER (PARTITION BY service, path, objective, target ORDER BY bucket) AS incident
    FROM near
    WHERE bad OR behind - before - 1 <= $gap
),
joined AS (
    SELECT
        service, path, objective, target, $since_ns + min(bucket) * $width_ns AS since_unix_nano,
        $since_ns + (max(bucket) + 1) * $width_ns AS until_unix_nano, sum(judged) AS judged, sum(breaches) AS breaches,
        count(*) FILTER (WHERE bad) AS bad_buckets
    FROM numbered
    GROUP BY service, path, objective, target, incident
)
SELECT *, count(*) OVER () AS incidents
FROM joined
ORDER BY breaches DESC, since_unix_nano, service, path, objective, target
LIMIT $most
