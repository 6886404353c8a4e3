"""Turns public workload traces into the files that `turnstile admin simulate` reads.

    python -m benchmarks.traces philly|hpc2n|lublin|shockwave|openb TRACE.gz OUT_DIR [--nodes 160] [--first 5000]

writes OUT_DIR/cluster.toml and OUT_DIR/jobs.csv.

Philly (Jeon et al., USENIX ATC 2019) counts GPUs only: a job of up to 8 goes on one node, a larger one over the fewest
nodes of equal parts. Its limits are the column `estimate_s`. The logs in Standard Workload Format (Parallel Workloads
Archive) count processors of one machine: one node holds them all. HPC2N has its users' limits; Lublin's model has none,
and the run time stands in for it, as in the papers that compare on it. Shockwave's jobs are gangs on nodes of 4.
For openb (Weng et al., USENIX ATC 2023) give the list of nodes with `--openb-nodes`; its pods arrive as they were made.
"""

import argparse
import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

Row = dict[str, object]
GPUS_PER_NODE = 8
_PROCESSORS = {"hpc2n": 240, "lublin": 256}


def gang(gpus: int, most_per_node: int = GPUS_PER_NODE) -> tuple[int, int]:
    """Returns (nodes, GPUs per node) for a total: the fewest nodes over which it divides evenly."""
    per_node = next(count for count in range(min(gpus, most_per_node), 0, -1) if gpus % count == 0)
    return gpus // per_node, per_node


def cluster(nodes: int, gpus: int = GPUS_PER_NODE, gpu_class: str = "P40") -> str:
    """Returns a cluster file of equal nodes."""
    return (
        f'[[nodes]]\ncount = {nodes}\nname = "node"\ngpu_class = "{gpu_class}"\ngpus = {gpus}\n'
        f"cpus = {gpus * 6}\nmemory_gib = {gpus * 64}\n"
    )


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a gzipped CSV file."""
    with gzip.open(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def philly(path: Path) -> Iterator[Row]:
    """Yields the jobs of the Philly file in order of submission."""
    for row in read_csv(path):
        nodes, gpus = gang(int(row["gpus"]))
        yield {
            "job_id": row["job_id"],
            "submit_seconds": row["submit_s"],
            "tenant": row["tenant"],
            "nodes": nodes,
            "gpus": gpus,
            "time_limit_seconds": row["estimate_s"],
            "duration_seconds": row["duration_s"],
        }


def shockwave(path: Path) -> Iterator[Row]:
    """Yields the jobs of the Shockwave trace; their run times are exclusive ones and serve as limits."""
    for row in read_csv(path):
        nodes, gpus = gang(int(row["gpus"]), 4)
        yield {
            "job_id": row["job_id"],
            "submit_seconds": row["submit_s"],
            "tenant": row["tenant"],
            "nodes": nodes,
            "gpus": gpus,
            "time_limit_seconds": row["duration_s"],
            "duration_seconds": row["duration_s"],
        }


def swf(path: Path) -> Iterator[Row]:
    """Yields the usable jobs of a log in Standard Workload Format (fields 1, 2, 4, 5 or 8, 9 and 12 of 18)."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            if not fields or fields[0].startswith(";"):
                continue
            run = int(float(fields[3]))
            processors = int(fields[7]) if int(fields[7]) > 0 else int(fields[4])
            if run < 0 or processors < 1:
                continue
            asked = int(float(fields[8]))
            yield {
                "job_id": fields[0],
                "submit_seconds": fields[1],
                "tenant": f"user-{fields[11]}" if int(fields[11]) >= 0 else "user",
                "nodes": 1,
                "gpus": processors,
                "time_limit_seconds": asked if asked > 0 else max(1, run),
                "duration_seconds": run,
            }


def openb_pods(path: Path) -> Iterator[Row]:
    """Yields the pods that ask for GPUs: whole ones, or a share in thousandths of one."""
    for row in read_csv(path):
        gpus, milli = int(row["num_gpu"]), int(row["gpu_milli"])
        if gpus == 0:
            continue
        created = int(row.get("creation_time") or 0)
        lasted = int(row.get("deletion_time") or 0) - created
        yield {
            "job_id": row["name"],
            "submit_seconds": created,
            "nodes": 1,
            "gpus": gpus if milli == 1000 else f"0.{milli:03d}",
            "gpu_class": row.get("gpu_spec") or "",
            "cpus": int(row["cpu_milli"]) / 1000,
            "memory_gib": int(row["memory_mib"]) / 1024,
            "duration_seconds": max(1, lasted),
        }


def openb_cluster(path: Path) -> str:
    """Returns the cluster file of openb's list of nodes."""
    parts = [
        f'[[nodes]]\nname = "{row["sn"]}"\ngpu_class = "{row["model"]}"\ngpus = {row["gpu"]}\n'
        f"cpus = {int(row['cpu_milli']) // 1000}\nmemory_gib = {int(row['memory_mib']) // 1024}\n"
        for row in read_csv(path)
    ]
    return "\n".join(parts)


def write(rows: Iterator[Row], cluster_text: str, out: Path, first: int | None = None) -> int:
    """Writes both files, with the jobs in order of submission; returns how many jobs there are."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cluster.toml").write_text(cluster_text, encoding="utf-8")
    jobs = sorted(rows, key=lambda row: float(str(row["submit_seconds"])))[:first]
    with (out / "jobs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(jobs[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(jobs)
    return len(jobs)


def convert(kind: str, trace: Path, nodes: int, openb_nodes: Path | None) -> tuple[Iterator[Row], str]:
    """Returns the jobs and the cluster file of a trace."""
    if kind == "philly":
        return philly(trace), cluster(nodes)
    if kind == "shockwave":
        return shockwave(trace), cluster(8, 4, "V100")
    if kind == "openb":
        assert openb_nodes is not None, "openb needs --openb-nodes"
        return openb_pods(trace), openb_cluster(openb_nodes)
    return swf(trace), cluster(1, _PROCESSORS[kind], "CPU")


def main() -> None:
    """Converts one trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["philly", "shockwave", "openb", *_PROCESSORS])
    parser.add_argument("trace", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--nodes", type=int, default=160, help="nodes of 8 GPUs, for philly")
    parser.add_argument("--openb-nodes", type=Path)
    parser.add_argument("--first", type=int, help="only so many jobs")
    given = parser.parse_args()
    rows, cluster_text = convert(given.kind, given.trace, given.nodes, given.openb_nodes)
    print(f"{given.out}: {write(rows, cluster_text, given.out, given.first)} jobs")


if __name__ == "__main__":
    main()
