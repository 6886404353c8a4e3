"""The variables of another scheduler that a job may ask for (`compat: slurm`), for scripts that read those names.

Off unless asked for: libraries that see SLURM_* take it for granted that `srun` and `scontrol` are there. The names and
their meaning are of sbatch(1) and srun(1), OUTPUT ENVIRONMENT VARIABLES, with one task on each node.
"""

from scheduler.executor import StartOrder


def slurm_variables(order: StartOrder, rank: int) -> dict[str, str]:
    """Returns what a rank's process sees besides; empty for a job that did not ask for it."""
    if not order.spec.has_slurm_names:
        return {}
    allocation, grant = order.allocation, order.allocation.grants[rank]
    nodes = str(len(allocation.grants))
    found = {
        "SLURM_JOB_ID": str(allocation.job),
        "SLURM_JOB_NAME": order.spec.name,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_NNODES": nodes,
        "SLURM_NODEID": str(rank),
        "SLURM_PROCID": str(rank),
        "SLURM_GPUS_ON_NODE": str(len(grant.devices)),
    }
    # Slurm counts whole CPUs; of a part of one, which it cannot give, nothing is said.
    if (cpus := grant.cpu_millicores // 1000) > 0:
        found["SLURM_CPUS_ON_NODE"] = str(cpus)
    if order.array is not None and order.array_index is not None:
        found |= {"SLURM_ARRAY_JOB_ID": str(order.array), "SLURM_ARRAY_TASK_ID": str(order.array_index)}
    return found
