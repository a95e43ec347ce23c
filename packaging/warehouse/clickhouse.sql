-- A table for the events of many recordings, and how they get into it:
--   zstdcat incident-*.jsonl.zst | grep '^{"type":"event"' |
--     clickhouse-client --query "insert into queue_trace_events format JSONEachRow"
create table if not exists queue_trace_events
(
    time DateTime64(9, 'UTC'),
    host LowCardinality(String) default hostName(),
    step LowCardinality(String),
    verdict LowCardinality(String),
    cause LowCardinality(String) default '',
    netns UInt32,
    listener Tuple(addr Nullable(String), port UInt16, cookie Nullable(UInt64), inode Nullable(UInt64)),
    local Nullable(String),
    client Tuple(addr Nullable(String), port Nullable(UInt16)),
    accept_queue Tuple(depth Nullable(UInt32), limit Nullable(UInt32)),
    syn_queue Tuple(depth Nullable(UInt32), young Nullable(UInt32), limit Nullable(UInt32)),
    waited_us Nullable(UInt64),
    count UInt64
)
engine = MergeTree
partition by toYYYYMM(time)
order by (host, tupleElement(listener, 'port'), time)
ttl toDateTime(time) + interval 90 day;

-- Who was refused most, by network and hour.
select
    toStartOfHour(time) as hour,
    host,
    tupleElement(listener, 'port') as port,
    verdict,
    cause,
    sum(count) as packets,
    uniq(tupleElement(client, 'addr')) as clients
from queue_trace_events
where verdict in ('syn_dropped', 'ack_dropped', 'cookie_dropped')
group by hour, host, port, verdict, cause
order by packets desc
limit 20;
