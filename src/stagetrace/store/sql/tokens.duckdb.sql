-- How many tokens the requests of each group took in and gave out, by weight; the older names where the newer are absent.
SELECT
    {by} coalesce(breached, false) AS is_breach,
    coalesce(sum(weight * try_cast(coalesce(
        attributes['gen_ai.usage.input_tokens'], attributes['gen_ai.usage.prompt_tokens']
    ) AS DOUBLE)), 0) AS input,
    coalesce(sum(weight * try_cast(coalesce(
        attributes['gen_ai.usage.output_tokens'], attributes['gen_ai.usage.completion_tokens']
    ) AS DOUBLE)), 0) AS output
FROM {requests}
GROUP BY ALL
ORDER BY input + output DESC
LIMIT $most
