-- When requests began, and how many each stands for, ascending: at most `most`.
SELECT {by} start_unix_nano, weight
FROM {requests}
ORDER BY start_unix_nano, span_id
LIMIT $most
