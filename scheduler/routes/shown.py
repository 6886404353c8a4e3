"""Jobs as one caller may see them: rows, with what is known besides."""

from collections.abc import Sequence

from scheduler.admission import Admission
from scheduler.auth import Rights
from scheduler.core.lifecycle import WAITING
from scheduler.routes.door import Door
from scheduler.routes.knowing import Knowing, Priced
from scheduler.store.queries import JobRecord
from scheduler.wire.answers import JobView, job_answer
from scheduler.wire.problems import Json, envelope


class Shown:
    """Makes answers about jobs. Shared by the routes of one app."""

    def __init__(self, door: Door, admission: Admission) -> None:
        self._door = door
        self.knowing = Knowing(door, admission)

    async def job(self, kind: str, job: JobRecord, rights: Rights) -> Json:
        """Returns one job: the envelope and the job's own fields."""
        [item] = await self.jobs([job], rights)
        return envelope(kind, self._door.now_ms, **item)

    async def jobs(self, jobs: Sequence[JobRecord], rights: Rights) -> list[Json]:
        """Returns jobs in order, with reasons for those that wait."""
        costs = await self.knowing.max_costs([Priced.of(each.job) for each in jobs])
        elastic = [each.job for each in jobs if each.job.shape.is_elastic]
        least = await self.knowing.max_costs([Priced.least(each) for each in elastic]) if elastic else []
        reasons = await self.knowing.reasons(each.job for each in jobs if each.job.state in WAITING)
        view = JobView(
            now_ms=self._door.now_ms,
            pools=self.knowing.pools,
            reasons=reasons,
            max_costs={each.job.id: cost for each, cost in zip(jobs, costs, strict=True) if cost is not None},
            least_costs={each.id: cost for each, cost in zip(elastic, least, strict=True) if cost is not None},
            positions=self.knowing.front.positions,
            estimates=self.knowing.front.promised,
        )
        return [
            job_answer(each, view, with_command=rights.may_see_command(each.job.account, each.job.user))
            for each in jobs
        ]
