-- Breaches by each of some properties (`facet`): how many have each value, and how many of these meet the conditions on all
-- other properties (`matching`). A condition is the list of the values that it lets through; an empty one lets everything
-- through; that of codes is at most one regular expression. At most `most` values of each property come, of `different`. The facet `all` has one row: of all breaches, and
-- of those that meet every condition.
WITH kinds AS (
    SELECT
        service, model, model_version, stage, cause, code, severity, objective, route AS recorded,
        CASE
            WHEN coalesce(contains(name, coalesce(route, url_path)), true) THEN name
            ELSE name || ' ' || coalesce(route, url_path)
        END AS shown,
        count(*) AS stored
    FROM {requests}
    WHERE breached
    GROUP BY ALL
),
checked AS (
    SELECT
        *, coalesce(recorded, shown) AS route,
        [
            len($services) = 0 OR coalesce(list_contains($services::VARCHAR[], service), false),
            len($routes) = 0 OR coalesce(list_contains($routes::VARCHAR[], recorded), false)
                OR list_contains($routes::VARCHAR[], shown),
            len($models) = 0 OR coalesce(list_contains($models::VARCHAR[], model), false),
            len($versions) = 0 OR coalesce(list_contains($versions::VARCHAR[], model_version), false),
            len($stages) = 0 OR coalesce(list_contains($stages::VARCHAR[], stage), false),
            len($causes) = 0 OR coalesce(list_contains($causes::VARCHAR[], cause), false),
            len($codes) = 0 OR coalesce(regexp_full_match(code, $codes[1]), false),
            len($severities) = 0 OR coalesce(list_contains($severities::VARCHAR[], severity), false),
            len($objectives) = 0 OR coalesce(list_contains($objectives::VARCHAR[], objective), false)
        ] AS met
    FROM kinds
),
named AS (
    SELECT
        unnest([
            'all', 'service', 'route', 'model', 'model_version', 'stage', 'cause', 'code', 'severity', 'objective'
        ]) AS facet,
        unnest([NULL, service, route, model, model_version, stage, cause, code, severity, objective]) AS value,
        unnest(list_prepend(true, met)) AS is_met, len(list_filter(met, lambda one: NOT one)) AS unmet, stored
    FROM checked
),
counted AS (
    SELECT
        facet, value, sum(stored)::BIGINT AS breaches,
        coalesce(sum(stored) FILTER (WHERE unmet = 0 OR (unmet = 1 AND NOT is_met)), 0)::BIGINT AS matching
    FROM named
    GROUP BY facet, value
),
ranked AS (
    SELECT
        *, count(*) OVER (PARTITION BY facet) AS different,
        row_number() OVER (PARTITION BY facet ORDER BY matching DESC, breaches DESC, value IS NULL, value) AS place
    FROM counted
)
SELECT facet, value, breaches, matching, different FROM ranked WHERE place <= $most
