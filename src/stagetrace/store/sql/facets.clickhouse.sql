-- As for DuckDB.
WITH kinds AS (
    SELECT
        service, model, model_version, stage, cause, code, severity, objective, route AS recorded,
        if(
            coalesce(position(name, coalesce(route, url_path)) > 0, true), name,
            concat(name, ' ', coalesce(route, url_path))
        ) AS shown,
        count() AS stored
    FROM {requests}
    WHERE breached
    GROUP BY ALL
),
checked AS (
    SELECT
        *, coalesce(recorded, shown) AS path,
        [
            empty({services:Array(String)}) OR coalesce(has({services:Array(String)}, service), false),
            empty({routes:Array(String)}) OR coalesce(has({routes:Array(String)}, recorded), false) OR has({routes:Array(String)}, shown),
            empty({models:Array(String)}) OR coalesce(has({models:Array(String)}, model), false),
            empty({versions:Array(String)}) OR coalesce(has({versions:Array(String)}, model_version), false),
            empty({stages:Array(String)}) OR coalesce(has({stages:Array(String)}, stage), false),
            empty({causes:Array(String)}) OR coalesce(has({causes:Array(String)}, cause), false),
            empty({codes:Array(String)}) OR coalesce(match(code, concat('^', {codes:Array(String)}[1], '$')), false),
            empty({severities:Array(String)}) OR coalesce(has({severities:Array(String)}, severity), false),
            empty({objectives:Array(String)}) OR coalesce(has({objectives:Array(String)}, objective), false)
        ] AS met
    FROM kinds
),
named AS (
    SELECT facet, value, is_met, arrayCount(one -> NOT one, met) AS unmet, stored
    FROM checked
    ARRAY JOIN
        ['all', 'service', 'route', 'model', 'model_version', 'stage', 'cause', 'code', 'severity', 'objective'] AS facet,
        [NULL, service, path, model, model_version, stage, cause, code, severity, objective] AS value,
        arrayConcat([true], met) AS is_met
),
counted AS (
    SELECT
        facet, value, sum(stored) AS breaches, sumIf(stored, unmet = 0 OR (unmet = 1 AND NOT is_met)) AS matching
    FROM named
    GROUP BY facet, value
),
ranked AS (
    SELECT
        *, count() OVER (PARTITION BY facet) AS different,
        row_number() OVER (PARTITION BY facet ORDER BY matching DESC, breaches DESC, value IS NULL, value) AS place
    FROM counted
)
SELECT facet, value, breaches, matching, different FROM ranked WHERE place <= {most:UInt32}
