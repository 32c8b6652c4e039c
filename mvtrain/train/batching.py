"""How a step's packs are divided among ranks and micro-steps."""

from __future__ import annotations

from dataclasses import dataclass

from mvtrain.train.config import ConfigError, TrainConfig


@dataclass(frozen=True)
class Batching:
    """One optimizer step on a number of ranks.

    What a step reads, `packs_per_step`, belongs to the run; what a rank does follows from it and from the number of
    ranks. So a run that goes on with another number of ranks takes the same steps.
    """

    world_size: int
    sequence_parallel_size: int
    """Ranks that share the tokens of one pack."""
    micro_batch_size: int
    """Packs of one micro-step of a rank (of a group, with sequence parallelism)."""
    packs_per_step: int

    @classmethod
    def of(cls, config: TrainConfig, world_size: int, packs_per_step: int | None = None) -> Batching:
        """As the recipe says; `packs_per_step` overrides it, for a run that goes on.

        Raises:
            ConfigError: the ranks cannot be divided into groups of `sequence_parallel_size`.
        """
        groups, left = divmod(world_size, config.sequence_parallel_size)
        if left:
            raise ConfigError(
                [
                    f"sequence_parallel_size: {world_size} ranks cannot be divided into groups of "
                    f"{config.sequence_parallel_size}; start a multiple of it"
                ]
            )
        chosen = packs_per_step or config.packs_per_step
        chosen = chosen or groups * config.micro_batch_size * config.gradient_accumulation_steps
        return cls(world_size, config.sequence_parallel_size, config.micro_batch_size, chosen)

    @property
    def num_groups(self) -> int:
        """Ranks that read different packs, or groups of them."""
        return self.world_size // self.sequence_parallel_size

    @property
    def accumulation_steps(self) -> int:
        """Micro-steps of a step. Where packs do not divide evenly some ranks run empty packs."""
        return -(-self.packs_per_step // (self.num_groups * self.micro_batch_size))

    @property
    def packs_per_rank(self) -> int:
        """Packs one rank (one group) runs for a step, empty ones included."""
        return self.micro_batch_size * self.accumulation_steps

    def group_of(self, rank: int) -> int:
        """Number of the group of a rank; the ranks of a group follow each other, so they stand on one node."""
        return rank // self.sequence_parallel_size
