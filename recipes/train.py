"""Train, evaluate and document every SAE of one recipe.

    accelerate launch recipes/train.py [RECIPE.yaml] [key=value ...] [--fresh]

Without a recipe file: recipes/tiny.yaml, which needs no network. A run that was killed or stopped
goes on when the same command is given again; --fresh moves it aside and starts over. Several
processes share the language model's forward and own different SAEs, whose weights are the same for
any number of them:

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/train.py
    accelerate launch --config_file recipes/accelerate/gpus.yaml recipes/train.py
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fastzoo.config.reading import load_recipe
from fastzoo.config.recipe import Recipe
from fastzoo.config.recipe_checks import check_against_model, check_sizes, doubts
from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.exit import report_failures
from fastzoo.core.paths import path_of
from fastzoo.core.processes import talking
from fastzoo.core.signals import Stopped, end_undisturbed, obeying_signals, stoppable
from fastzoo.training.trackers import check_trackers, start_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fastzoo.data.split import Data
    from fastzoo.lm.load import ModelSource
    from fastzoo.training.checkpoint_schedule import CheckpointSchedule
    from fastzoo.training.checkpoints import InTraining
    from fastzoo.training.run_folder import Start
    from fastzoo.training.sharding import SharedForward


def main(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    recipe, fresh = read_arguments(arguments)
    with obeying_signals():
        check_trackers(recipe.output.trackers)
        if not recipe.push.namespace:
            run(recipe, fresh=fresh)
            return
        from fastzoo.hub.registry import DATASET
        from fastzoo.publish.access import check_token
        from fastzoo.publish.push import push_run

        also = [DATASET] if recipe.push.collection else []
        check_token(recipe.push.namespace, [*map(str, recipe.names()), *also])
        if run(recipe, fresh=fresh):
            # All is on the disk, and whatever happens now, 'fastzoo push' can finish it.
            push_run(recipe.folder, recipe.push)


def read_arguments(arguments: list[str]) -> tuple[Recipe, bool]:
    """The recipe, and whether to start over."""
    overrides = [a for a in arguments if "=" in a]
    options = {a for a in arguments if a.startswith("--")}.difference(overrides)
    if unknown := options - {"--fresh"}:
        raise InputError(f"there is no option {unknown.pop()}, only --fresh and --help")
    files = [a for a in arguments if a not in overrides and a not in options]
    if len(files) > 1:
        raise InputError(f"more than one recipe file: {', '.join(files)}")
    return load_recipe(path_of(files[0], "recipe") if files else None, overrides), "--fresh" in options


@dataclass
class Run:
    """One run, as far as it has come: what ``prepare`` finds, then what ``stream`` sets up."""

    recipe: Recipe
    accelerator: Accelerator
    source: ModelSource
    data: Data
    settings: dict[str, Any]
    start: Start
    forward: SharedForward | None = None
    parts: InTraining | None = None
    checkpoints: CheckpointSchedule | None = None

    def say(self, line: str) -> None:
        """Print a line, from one of the processes."""
        if self.accelerator.is_main_process:
            print(line, file=sys.stderr)


def run(recipe: Recipe, *, fresh: bool = False) -> bool:
    """Run a recipe; whether this is the process that speaks for all."""
    accelerator = begin(recipe)
    try:
        with ExitStack() as held:
            this = prepare(recipe, accelerator, held, fresh=fresh)
            if not this.start.complete:
                try:
                    stream(this)
                    train(this)
                    finish(this)
                except BaseException as error:
                    keep_what_there_is(this, error)
                    raise
    except BaseException:
        for tracker in accelerator.trackers:
            tracker.finish()
        raise
    main_process = bool(accelerator.is_main_process)
    # Closes trackers and the process group, which after a failure may hold nobody to talk to.
    accelerator.end_training()
    return main_process


def begin(recipe: Recipe) -> Accelerator:
    """This process's device and threads, and its place among the others."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    from fastzoo.lm.devices import check_gpus, use_deterministic_algorithms, use_threads

    # torchrun, and accelerate through it, say how many processes this machine has.
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    check_gpus(local_processes)
    use_deterministic_algorithms()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=list(recipe.output.trackers) or None,
        project_dir=str(recipe.folder),
        # A process that ends is noticed at once. This is for one that lives and is stuck, and must
        # outlast the difference between the slowest and the fastest evaluation.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    use_threads(recipe.threads, local_processes)
    return accelerator


def prepare(recipe: Recipe, accelerator: Accelerator, held: ExitStack, *, fresh: bool) -> Run:
    """Find everything that can be wrong before weights are loaded; open data and, locked by ``held``, the folder."""
    from accelerate.utils import broadcast_object_list, gather_object

    from fastzoo.data.split import open_data
    from fastzoo.data.tokenizer import ChatTokenizer
    from fastzoo.lm.devices import memory_of
    from fastzoo.lm.load import find_model, load_tokenizer
    from fastzoo.results.summary import print_results, read_results
    from fastzoo.training.run_folder import Start, check_space, lock_run, start_run
    from fastzoo.training.run_record import run_settings
    from fastzoo.training.sharding import check_same_run
    from fastzoo.training.steps import choose

    choose(recipe.compute, accelerator.device)
    source = find_model(recipe.model)
    recipe = recipe.fitted(source.max_positions)
    check_against_model(recipe, source.n_layers, source.max_positions)
    check_sizes(recipe, source.d_model, memory_of(accelerator.device))
    chat = ChatTokenizer(load_tokenizer(source), recipe.data, source.name, source.embeddings)
    data = open_data(chat, recipe.method, recipe.text, recipe.evaluation, recipe.seed)
    settings = run_settings(data, recipe, source, accelerator.device)
    with talking():
        check_same_run(gather_object([{**settings, "threads": recipe.threads}]))

    this = Run(recipe, accelerator, source, data, settings, Start())
    starts = [this.start]
    if accelerator.is_main_process:
        held.enter_context(lock_run(recipe.folder, this.say))
        starts = [start_run(recipe, settings, fresh=fresh, say=this.say)]
        check_space(recipe, starts[0], source.d_model, settings["model.computed_in"], this.say)
    with talking():
        (this.start,) = broadcast_object_list(starts)
    if this.start.complete:
        this.say(f"{recipe.folder} is complete; --fresh moves it aside and starts over")
        if accelerator.is_main_process:
            print_results(read_results(recipe.folder, recipe.names()), recipe.training.l0)
    else:
        for line in data.summary():
            this.say(line)
        for line in doubts(recipe):
            this.say(f"warning: {line}")
    return this


def stream(this: Run) -> None:
    """Set up one stream of activations for all layers, model -> buffer -> batches, and the SAEs that
    learn from it. Each process computes a share of the stream and sees that of its own layers."""
    from fastzoo.lm.activations import ResidualReader
    from fastzoo.lm.fitness import check_model
    from fastzoo.lm.load import load_model
    from fastzoo.training.buffer import MixingBuffer
    from fastzoo.training.checkpoint_schedule import CheckpointSchedule
    from fastzoo.training.checkpoints import InTraining
    from fastzoo.training.columns import TrainingColumns, held_out_columns
    from fastzoo.training.run_record import machine
    from fastzoo.training.sharding import SharedForward, assign
    from fastzoo.training.trainer import Trainer, derived_seed

    recipe, training, checkpoint = this.recipe, this.recipe.training, this.start.checkpoint
    device, rank, width = this.accelerator.device, this.accelerator.process_index, this.source.d_model
    model = load_model(this.source, recipe.model, device)
    reader = ResidualReader(model, pack_tokens=recipe.model.pack_tokens)
    check_model(reader)
    owners = assign(recipe.names(), width, this.accelerator.num_processes)
    this.checkpoints = CheckpointSchedule(
        recipe.folder, recipe.checkpoint, this.settings, machine(), owners, rank
    )
    idle = this.checkpoints.idle
    layers, held_out = {name.layer for name in owners[rank]}, None
    if training.l0:  # first of all: see there
        held_out = held_out_columns(reader, this.data.held_out, layers, idle)
    this.forward = SharedForward(reader, owners, rank, idle)
    if checkpoint:
        this.data.stream.start_at(checkpoint.position)
    columns = TrainingColumns(this.forward, this.data.stream, training.steps * training.batch_size)
    sizes, seed = (training.buffer_tokens, training.batch_size), derived_seed(recipe.seed, "buffer")
    buffer = MixingBuffer(columns, *sizes, seed, position=lambda: columns.position, idle=idle)
    sample = None if checkpoint else buffer.fill()
    log_every, compute = recipe.output.log_every, recipe.compute
    trainer = Trainer(
        owners[rank],
        width,
        training,
        sample,
        seed=recipe.seed,
        device=device,
        log_every=log_every,
        compute=compute,
        held_out=held_out,
    )
    this.parts = InTraining(trainer, buffer, reader)
    if checkpoint:
        checkpoint.restore(this.parts)
    this.checkpoints.watch(this.parts)


def train(this: Run) -> None:
    """Each process trains the SAEs that it owns, all on the same batches."""
    from fastzoo.core.progress import Progress

    recipe, accelerator, checkpoints, trainer = (
        this.recipe,
        this.accelerator,
        this.checkpoints,
        this.parts.trainer,
    )
    if recipe.output.trackers:
        start_trackers(recipe, accelerator)
    title = f"training {len(recipe.names())} SAEs"
    progress = Progress(title, recipe.training.steps, shown=accelerator.is_main_process)
    with stoppable(checkpoints.idle), progress as bar:
        bar.begin_at(trainer.step_number)
        for batch in trainer.guarded(this.parts.buffer):
            logged = trainer.step(batch)
            bar.advance(note=trainer.note() if logged else None)
            if logged and recipe.output.trackers:
                accelerator.log(trainer.tracked(), step=trainer.step_number)
            checkpoints.after_step()
        checkpoints.at_end()
    this.say(this.data.after_training())
    this.say(checkpoints.summary(trainer.seconds()))


def finish(this: Run) -> None:
    """Held-out figures of all SAEs in one pass, one complete folder per SAE, and the summary."""
    from accelerate.utils import gather_object

    from fastzoo.data.special_tokens import SpecialTokens
    from fastzoo.results.evaluate import evaluate
    from fastzoo.results.folder import save_result
    from fastzoo.results.summary import print_results
    from fastzoo.training.run_folder import complete_run
    from fastzoo.training.run_record import run_facts

    recipe, data, accelerator = this.recipe, this.data, this.accelerator
    trainer, reader, main_process = this.parts.trainer, this.parts.reader, accelerator.is_main_process
    facts = run_facts(data, recipe, this.source, reader)
    saes = {str(x.name): (x.name.layer, x.finished()) for x in trainer.learners}
    found = {}
    if saes:  # with more processes than SAEs some own none
        special = SpecialTokens.of(data.chat)
        losses = recipe.evaluation.loss_dialogues
        found = evaluate(reader, saes, data.held_out, special, loss_dialogues=losses, shown=main_process)
    results = []
    for learner in trainer.learners:
        name = str(learner.name)
        sae, figures = saes[name][1].cpu(), found[name]
        save_result(recipe.folder, learner, sae, figures, facts, recipe.training.batch_size)
        results.append((learner.name, figures.metrics, trainer.tokens_per_second(), sae.skips_sinks))
    with talking():
        results = sorted(gather_object(results))
        shares = gather_object([this.forward.tokens])
    if main_process:
        print_results(results, recipe.training.l0)
        if accelerator.num_processes > 1:
            this.say(f"tokens through the language model, by rank: {shares}")
        this.say(f"{len(results)} SAEs in {recipe.folder}")
    # A rank that leaves while others still talk was seen to abort at its exit (gloo).
    with talking():
        accelerator.wait_for_everyone()
    if main_process:
        complete_run(recipe.folder)


def keep_what_there_is(this: Run, error: BaseException) -> None:
    """Whatever ended the run, hours of training are not lost with it."""
    from fastzoo.training.run_folder import keep_interrupted, withdraw_run
    from fastzoo.training.run_record import run_facts

    end_undisturbed()
    recipe = this.recipe
    if this.parts is None or not this.parts.trainer.step_number:
        if this.accelerator.is_main_process:
            withdraw_run(recipe.folder)
    elif not isinstance(error, (Stopped, OutputError)):
        facts = run_facts(this.data, recipe, this.source, this.parts.reader)
        keep_interrupted(this.parts.trainer.learners, facts)


if __name__ == "__main__":
    report_failures(lambda: main(sys.argv[1:]))
