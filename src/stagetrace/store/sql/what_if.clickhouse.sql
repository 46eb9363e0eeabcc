-- As for DuckDB.
SELECT
    {by} quantilesExactInclusive(0.5, 0.95, 0.99)(
        assumeNotNull(duration_ms) - {cut:Float64} * coalesce(
            if(
                {stage:String} IN ({each stages, : '{stage}' end}),
                multiIf(
                    {each stages, : {stage:String} = '{stage}', {column} end}, NULL
                ),
                stages[{stage:String}]
            ), 0
        )
    ) AS quantiles
FROM {requests}
WHERE duration_ms >= 0
GROUP BY ALL
