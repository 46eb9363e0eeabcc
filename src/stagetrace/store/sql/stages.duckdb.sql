-- Of each group: its requests, and of the whole (`duration_ms`) and of each stage that has a column a list: how many requests
-- have it, three exact quantiles, the greatest, the sum. Counts and sums are by weight, quantiles where all requests have the
-- same one; the list is empty where none has it.
SELECT
    -- In columns until each group is one row: a row for each stage of each request would take eight times the memory. In
    -- one list, as each quantile by itself would keep all the values.
    {by} sum(weight) AS requests, count(*) AS stored,
    bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
    sampled AND (
        coalesce(max(sampling_probability), 0) = 0
        OR bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false))
    ) AS unknown,
    min(weight) < max(weight) AS uneven,
    CASE
        WHEN count(COLUMNS('^(duration|network_receive|queue|preprocess|handler|inference|postprocess|network_send)_ms$')) > 0 THEN list_concat(
            [sum(CASE WHEN COLUMNS('^(duration|network_receive|queue|preprocess|handler|inference|postprocess|network_send)_ms$') IS NOT NULL THEN weight END)],
            quantile_cont(COLUMNS('^(duration|network_receive|queue|preprocess|handler|inference|postprocess|network_send)_ms$'), [0.5, 0.95, 0.99]),
            [max(COLUMNS('^(duration|network_receive|queue|preprocess|handler|inference|postprocess|network_send)_ms$')), sum(weight * COLUMNS('^(duration|network_receive|queue|preprocess|handler|inference|postprocess|network_send)_ms$'))]
        )
        ELSE []::DOUBLE[]
    END
FROM {requests}
GROUP BY ALL
