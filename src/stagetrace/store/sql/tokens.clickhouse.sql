-- As for DuckDB. A key that a map lacks is an empty text here, which is no number.
SELECT
    {by} coalesce(breached, false) AS is_breach,
    sum(weight * coalesce(
        toFloat64OrNull(attributes['gen_ai.usage.input_tokens']),
        toFloat64OrNull(attributes['gen_ai.usage.prompt_tokens']), 0
    )) AS input,
    sum(weight * coalesce(
        toFloat64OrNull(attributes['gen_ai.usage.output_tokens']),
        toFloat64OrNull(attributes['gen_ai.usage.completion_tokens']), 0
    )) AS output
FROM {requests}
GROUP BY ALL
ORDER BY input + output DESC
LIMIT {most:UInt64}
