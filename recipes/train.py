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
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fastzoo.config.checks import check_against_model, check_sizes
from fastzoo.config.reading import load_recipe
from fastzoo.config.recipe import Recipe
from fastzoo.core.errors import InputError, OutputError
from fastzoo.core.exit import report_failures
from fastzoo.core.lock import release_claims
from fastzoo.core.processes import Stopped, end_undisturbed, obeying_signals, stoppable, talking
from fastzoo.publish.push import push_run, warn_without_token

if TYPE_CHECKING:
    from accelerate import Accelerator


def main(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    options = [a for a in arguments if a.startswith("--") and "=" not in a]
    if unknown := set(options) - {"--fresh"}:
        raise InputError(
            f"there is no option {unknown.pop()}; --fresh and --help are the only ones"
        )
    files = [a for a in arguments if "=" not in a and a not in options]
    if len(files) > 1:
        raise InputError(f"more than one recipe file: {', '.join(files)}")
    recipe = load_recipe(
        Path(files[0]) if files else None, overrides=[a for a in arguments if "=" in a]
    )
    if recipe.push.namespace:
        warn_without_token()
    with obeying_signals():
        if train(recipe, fresh="--fresh" in options) and recipe.push.namespace:
            # All is on the disk, and whatever happens now, 'fastzoo push' can finish it.
            push_run(recipe.folder, recipe.push)


def train(recipe: Recipe, *, fresh: bool = False) -> bool:
    """Run a recipe; whether this is the process that speaks for all."""
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
    try:
        run(recipe, accelerator, fresh=fresh)
    except BaseException:
        for tracker in accelerator.trackers:
            tracker.finish()
        raise
    finally:
        release_claims()
    main_process = accelerator.is_main_process
    # Closes trackers and the process group, which after a failure may hold nobody to talk to.
    accelerator.end_training()
    return bool(main_process)


def run(recipe: Recipe, accelerator: Accelerator, *, fresh: bool = False) -> None:
    from accelerate.utils import broadcast_object_list, gather_object

    from fastzoo.core.progress import Progress
    from fastzoo.data.special_tokens import SpecialTokens
    from fastzoo.data.split import open_data
    from fastzoo.lm.activations import ResidualReader
    from fastzoo.lm.devices import memory_of
    from fastzoo.lm.load import find_model, load_model, load_tokenizer
    from fastzoo.results.evaluate import evaluate
    from fastzoo.results.folder import save_result
    from fastzoo.results.summary import print_results, read_results
    from fastzoo.training.buffer import MixingBuffer
    from fastzoo.training.checkpoints import Checkpoints
    from fastzoo.training.columns import TrainingColumns
    from fastzoo.training.run_folder import (
        complete_run,
        keep_interrupted,
        machine,
        run_facts,
        run_settings,
        start_run,
        withdraw_run,
    )
    from fastzoo.training.sharding import SharedForward, assign, check_same_run
    from fastzoo.training.steps import choose
    from fastzoo.training.trainer import Trainer, derived_seed

    main_process = accelerator.is_main_process

    def say(line: str) -> None:
        if main_process:
            print(line, file=sys.stderr)

    # 1. Everything that can be wrong is found out before the weights are loaded.
    choose(recipe.compute, accelerator.device)
    source = find_model(recipe.model)
    check_against_model(recipe, source.n_layers, source.max_positions)
    check_sizes(recipe, source.d_model, memory_of(accelerator.device))
    data = open_data(recipe, load_tokenizer(source), source.name, source.embeddings)
    settings = run_settings(data, recipe, source)
    with talking():
        everyones = gather_object([{**settings, "threads": recipe.threads}])
    check_same_run(everyones)
    folder = recipe.folder
    starts = [start_run(recipe, settings, fresh=fresh, say=say) if main_process else None]
    with talking():
        (start,) = broadcast_object_list(starts)
    if start.complete:
        say(f"{folder} is complete; --fresh moves it aside and starts over")
        if main_process:
            print_results(read_results(folder, recipe.names()))
        return
    for line in data.summary():
        say(line)

    trainer = None
    try:
        # 2. One stream of activations for all layers: model -> buffer -> batches. Each process
        #    computes a share of it and sees that of its own layers.
        model = load_model(source, recipe.model, accelerator.device)
        reader = ResidualReader(model, pack_tokens=recipe.model.pack_tokens)
        training = recipe.training
        rank, processes = accelerator.process_index, accelerator.num_processes
        owners = assign(recipe.names(), source.d_model, processes)
        checkpoints = Checkpoints(folder, recipe.checkpoint, settings, machine(), owners, rank)
        forward = SharedForward(reader, owners, rank, checkpoints.idle)
        if start.checkpoint:
            data.stream.start_at(start.checkpoint.position)
        columns = TrainingColumns(forward, data.stream, recipe)
        buffer = MixingBuffer(
            columns,
            training.buffer_tokens,
            training.batch_size,
            derived_seed(recipe.seed, "buffer"),
            position=lambda: columns.position,
            idle=checkpoints.idle,
        )

        # 3. Each process trains the SAEs that it owns, all on the same batches.
        trainer = Trainer(
            owners[rank],
            source.d_model,
            training,
            None if start.checkpoint else buffer.fill(),
            seed=recipe.seed,
            device=accelerator.device,
            log_every=recipe.output.log_every,
            compute=recipe.compute,
        )
        if start.checkpoint:
            start.checkpoint.restore(trainer, buffer, reader)
        checkpoints.watch(trainer, buffer, reader)
        if recipe.output.trackers:
            accelerator.init_trackers(recipe.output.project, config={"recipe": recipe.to_yaml()})
        title = f"training {len(recipe.names())} SAEs"
        with (
            stoppable(checkpoints.idle),
            Progress(title, training.steps, shown=main_process) as bar,
        ):
            bar.begin_at(trainer.step_number)
            for batch in trainer.guarded(buffer):
                logged = trainer.step(batch)
                bar.advance(note=trainer.note() if logged else None)
                if logged and recipe.output.trackers:
                    accelerator.log(trainer.tracked(), step=trainer.step_number)
                checkpoints.after_step()
            checkpoints.at_end()

        # 4. Held-out figures of all SAEs in one pass, then one complete folder per SAE.
        say(data.after_training())
        say(checkpoints.summary(trainer.seconds()))
        facts = run_facts(data, recipe, source, reader)
        saes = {str(x.name): (x.name.layer, x.finished()) for x in trainer.learners}
        found = {}
        if saes:  # with more processes than SAEs some own none
            with Progress("evaluating", data.held_out_counts.tokens, shown=main_process) as bar:
                found = evaluate(
                    reader,
                    saes,
                    data.held_out,
                    SpecialTokens.of(data.chat),
                    lambda n: bar.advance(n, "held-out tokens"),
                )
        results = []
        for learner in trainer.learners:
            sae = saes[str(learner.name)][1].cpu()
            name = str(learner.name)
            save_result(folder, learner, sae, found[name], facts, training.batch_size)
            results.append((learner.name, found[name].metrics, trainer.tokens_per_second()))
    except BaseException as error:
        # Whatever ended the run, hours of training are not lost with it.
        end_undisturbed()
        if not trainer or not trainer.step_number:
            if main_process:
                withdraw_run(folder, start)
        elif not isinstance(error, (Stopped, OutputError)):
            facts = run_facts(data, recipe, source, reader)
            keep_interrupted(folder, trainer.learners, facts, training.batch_size)
        raise

    with talking():
        results = sorted(gather_object(results))
        shares = gather_object([forward.tokens])
    if main_process:
        print_results(results)
        if processes > 1:
            print(f"tokens through the language model, by rank: {shares}", file=sys.stderr)
        print(f"{len(results)} SAEs in {folder}", file=sys.stderr)
    # A rank that leaves while others still talk was seen to abort at its exit (gloo).
    with talking():
        accelerator.wait_for_everyone()
    if main_process:
        complete_run(folder)


if __name__ == "__main__":
    report_failures(lambda: main(sys.argv[1:]))
