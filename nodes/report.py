"""The trainer's report, for people."""

from statistics import mean

from ..palp_train.checkpoint import PalpLora
from .host.training import Job, Outcome


def report_text(job: Job, outcome: Outcome, saved: PalpLora) -> str:
    """What was trained, how it went, what it cost and where it is; a few lines."""
    steps, loss = outcome.steps, job.loss
    tenth = max(1, len(steps) // 10)
    first, last = (mean(step.personalization for step in part) for part in (steps[:tenth], steps[-tenth:]))
    aligned = [step.alignment for step in steps if step.alignment]
    scales = f"alpha {loss.alignment_scale:g}, beta {loss.personalization_scale:g}, {loss.noise} noise, {'rescaled' if loss.rescale else 'not rescaled'}"
    words = [f"{word.placeholder} ({', '.join(word.vectors)})" for word in saved.words]
    return "\n".join(
        [
            f"Saved: {saved.file}",
            f"Target prompt: {job.prompts.target}",
            f"Clean prompt: {job.prompts.clean}",
            f"New word: {', '.join(words) or 'none'}",
            f"Method: {loss.method}" + ("" if loss.method == "none" else f" ({scales})"),
            f"Steps: {len(steps)}, learning rate {job.train.learning_rate:g}, rank {job.train.rank} on {job.train.layers}, seed {job.train.seed}, "
            f"{job.train.batch_size} x {job.train.gradient_accumulation} pictures a step",
            f"Computed in {outcome.dtype}, {outcome.plan}",
            f"Reconstruction loss: {first:.4f} at the start, {last:.4f} at the end (means of {tenth} steps)",
            f"Alignment score: {mean(aligned):.4f} (mean root mean square of {len(aligned)} steps)" if aligned else "Alignment score: none",
            *(["Aligned by the teacher model"] if job.teacher_model else []),
            *outcome.notes,
            f"Cost: {outcome.seconds:.1f} s ({outcome.seconds / len(steps):.2f} s a step), peak memory {_memory(outcome)}, {outcome.device}",
        ]
    )


def _memory(outcome: Outcome) -> str:
    expected = f" ({outcome.expected_memory / 2**30:.2f} GiB expected)" if outcome.expected_memory else ""
    return f"{outcome.peak_memory / 2**30:.2f} GiB{expected}"
