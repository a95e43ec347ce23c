"""Runs packaging/warehouse on a folder of recordings, as its comments say, and compares what
DuckDB and ClickHouse (chdb) count with what the lines say.

Usage: warehouse.py FOLDER SQL-FOLDER. The folder has incident-*.jsonl.zst.
"""

import collections
import glob
import json
import os
import subprocess
import sys

import chdb.session
import duckdb

REFUSED = ("syn_dropped", "ack_dropped", "cookie_dropped")


def statements(text):
    """The statements of a script, without its comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]


def same(name, counted, expected):
    if counted != expected:
        sys.exit(f"{name} counts {counted}, the lines say {expected}")
    print(f"{name} {counted.total()} packets in {len(counted)} rows, as the lines say")


def main():
    folder, sql = (os.path.abspath(path) for path in sys.argv[1:])
    os.chdir(folder)
    lines = subprocess.run(
        ["zstdcat", *sorted(glob.glob("incident-*.jsonl.zst"))], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    events = [line for line in lines if line.startswith('{"type":"event"')]
    expected = collections.Counter()
    for event in map(json.loads, events):
        if event["verdict"] in REFUSED:
            key = (event["listener"]["port"], event["verdict"], event["cause"])
            expected[key] += event["count"]
    if len(expected) < 2:
        sys.exit("the recordings refuse too little to compare")

    with open(f"{sql}/duckdb.sql", encoding="utf-8") as file:
        view, refused, parquet = statements(file.read())
    duck = duckdb.connect()
    duck.execute(view)
    duck.execute(refused)
    names = [column[0] for column in duck.description]
    rows = [dict(zip(names, row)) for row in duck.fetchall()]
    counted = {(row["port"], row["verdict"], row["cause"]): row["packets"] for row in rows}
    same(f"DuckDB {duckdb.__version__}", collections.Counter(counted), expected)
    duck.execute(parquet)
    (kept,) = duck.execute("select count(*) from 'events.parquet'").fetchone()
    if kept != len(events):
        sys.exit(f"the Parquet file has {kept} of {len(events)} events")

    with open(f"{sql}/clickhouse.sql", encoding="utf-8") as file:
        table, refused = statements(file.read())
    click = chdb.session.Session()
    click.query(table)
    click.query("insert into queue_trace_events format JSONEachRow\n" + "\n".join(events))
    answer = str(click.query(refused, "JSONEachRow"))
    counted = collections.Counter()
    for row in map(json.loads, answer.splitlines()):
        counted[(row["port"], row["verdict"], row["cause"])] += int(row["packets"])
    same(f"ClickHouse (chdb {chdb.__version__})", counted, expected)
    (kept,) = json.loads(str(click.query("select count() as n from queue_trace_events", "JSONEachRow"))).values()
    if int(kept) != len(events):
        sys.exit(f"ClickHouse has {kept} of {len(events)} events")


main()
