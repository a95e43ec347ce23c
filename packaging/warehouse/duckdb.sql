-- DuckDB reads recordings as they are: duckdb -init duckdb.sql
-- Replace the pattern by where your recordings are.
create or replace view events as
select *
from read_json(
    'incident-*.jsonl.zst',
    format = 'newline_delimited', compression = 'zstd', union_by_name = true, filename = true,
    ignore_errors = true,
    columns = {
        type: 'varchar', time: 'timestamptz', verdict: 'varchar', cause: 'varchar', netns: 'ubigint',
        listener: 'struct(addr varchar, port usmallint, inode ubigint)',
        client: 'struct(addr varchar, port usmallint)',
        accept_queue: 'struct(depth uinteger, "limit" uinteger)',
        waited_us: 'ubigint', count: 'ubigint'
    })
where type = 'event';

-- What was refused, by listener and cause.
select listener.port as port, verdict, cause, sum(count) as packets, count(distinct client.addr) as clients,
       max(accept_queue.depth) as deepest, min(time) as first, max(time) as last
from events
where verdict in ('syn_dropped', 'ack_dropped', 'cookie_dropped')
group by all
order by packets desc;

-- The same as Parquet, for whoever reads it often.
copy (select * from events) to 'events.parquet' (format parquet, compression zstd);
