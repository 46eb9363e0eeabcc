-- How many requests there are, and sums, modulo 2^64, of the first two quarters of each one's SHA-256: what they are
-- alone, neither their order, nor the kind of store, nor how often one was delivered, changes them.
SELECT
    count(*) AS requests,
    coalesce((sum(('0x' || hash[1:16])::UBIGINT) % 18446744073709551616::HUGEINT)::UBIGINT, 0) AS first_sum,
    coalesce((sum(('0x' || hash[17:32])::UBIGINT) % 18446744073709551616::HUGEINT)::UBIGINT, 0) AS second_sum,
    min(start_unix_nano) AS first_unix_nano, max(start_unix_nano) AS last_unix_nano
FROM (
    SELECT
        start_unix_nano,
        sha256(
            concat_ws(
                chr(31), trace_id, span_id, service, start_unix_nano,
                CASE WHEN breached THEN 'breach' WHEN NOT breached THEN 'good' ELSE coalesce(verdict, '') END,
                coalesce(path, ''), coalesce(objective, ''), coalesce(target, ''), verdicts
            )
        ) AS hash
    FROM {requests}
)
