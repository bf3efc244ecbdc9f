"""Train, evaluate and document every SAE of one recipe.

    accelerate launch recipes/train.py [RECIPE.yaml] [key=value ...]

Without a recipe file: recipes/tiny.yaml, which needs no network. Several processes share the
language model's forward and own different SAEs, whose weights are the same for any number of them:

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/train.py
    accelerate launch --config_file recipes/accelerate/gpus.yaml recipes/train.py
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fastzoo.config import Recipe, check_against_model, check_sizes, load_recipe
from fastzoo.errors import InputError, report_failures
from fastzoo.ranks import end_undisturbed, obey_launcher, talking

if TYPE_CHECKING:
    from accelerate import Accelerator


def main(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise InputError(f"more than one recipe file: {', '.join(files)}")
    recipe = load_recipe(
        Path(files[0]) if files else None, overrides=[a for a in arguments if "=" in a]
    )
    train(recipe)


def train(recipe: Recipe) -> None:
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    from fastzoo.models import check_gpus, use_threads

    # torchrun, and accelerate through it, say how many processes this machine has.
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    check_gpus(local_processes)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=list(recipe.output.trackers) or None,
        project_dir=str(recipe.folder),
        # A process that ends is noticed at once. This is for one that lives and is stuck, and must
        # outlast the difference between the slowest and the fastest evaluation.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    # Not before there is a group: whoever waits for it can be ended at once.
    obey_launcher()
    use_threads(recipe.threads, local_processes)
    try:
        run(recipe, accelerator)
    except BaseException:
        for tracker in accelerator.trackers:
            tracker.finish()
        raise
    # Closes trackers and the process group, which after a failure may hold nobody to talk to.
    accelerator.end_training()


def run(recipe: Recipe, accelerator: Accelerator) -> None:
    from accelerate.utils import gather_object

    from fastzoo.activations import ResidualReader
    from fastzoo.buffer import MixingBuffer
    from fastzoo.data import open_data, training_columns
    from fastzoo.evaluate import evaluate
    from fastzoo.models import find_model, load_model, load_tokenizer, memory_of
    from fastzoo.output import keep_interrupted, save_result, start_run, withdraw_run
    from fastzoo.ownership import SharedForward, assign, check_same_run
    from fastzoo.progress import Progress
    from fastzoo.results import print_results
    from fastzoo.steps import choose
    from fastzoo.trainer import Trainer, derived_seed

    main_process = accelerator.is_main_process

    # 1. Everything that can be wrong is found out before the weights are loaded.
    choose(recipe.compute, accelerator.device)
    source = find_model(recipe.model)
    check_against_model(recipe, source.n_layers, source.max_positions)
    check_sizes(recipe, source.d_model, memory_of(accelerator.device))
    data = open_data(recipe, load_tokenizer(source), source.name)
    with talking():
        fingerprints = gather_object([data.fingerprint(recipe, source)])
    check_same_run(fingerprints)
    folder = recipe.folder
    if main_process:
        start_run(recipe)
        for line in data.summary():
            print(line, file=sys.stderr)

    trainer = None
    try:
        # 2. One stream of activations for all layers: model -> buffer -> batches. Each process
        #    computes a share of it and sees that of its own layers.
        model = load_model(source, recipe.model, accelerator.device)
        reader = ResidualReader(model, pack_tokens=recipe.model.pack_tokens)
        training = recipe.training
        rank, processes = accelerator.process_index, accelerator.num_processes
        owners = assign(recipe.names(), source.d_model, processes)
        forward = SharedForward(reader, owners, rank)
        buffer = MixingBuffer(
            training_columns(forward, data.stream, recipe),
            training.buffer_tokens,
            training.batch_size,
            derived_seed(recipe.seed, "buffer"),
        )

        # 3. Each process trains the SAEs that it owns, all on the same batches.
        trainer = Trainer(
            owners[rank],
            source.d_model,
            training,
            buffer.fill(),
            seed=recipe.seed,
            device=accelerator.device,
            log_every=recipe.output.log_every,
            compute=recipe.compute,
        )
        if recipe.output.trackers:
            accelerator.init_trackers(recipe.output.project, config={"recipe": recipe.to_yaml()})
        with Progress(
            f"training {len(recipe.names())} SAEs", training.steps, shown=main_process
        ) as bar:
            for batch in trainer.guarded(buffer):
                logged = trainer.step(batch)
                bar.advance(note=trainer.note() if logged else None)
                if logged and recipe.output.trackers:
                    accelerator.log(trainer.tracked(), step=trainer.step_number)

        # 4. Held-out figures of all SAEs in one pass, then one complete folder per SAE.
        if main_process:
            print(data.after_training(), file=sys.stderr)
        facts = data.facts(recipe, source, reader)
        saes = {str(x.name): (x.name.layer, x.finished()) for x in trainer.learners}
        figures = {}
        if saes:  # with more processes than SAEs some own none
            with Progress("evaluating", data.held_out_counts.tokens, shown=main_process) as bar:
                figures = evaluate(
                    reader, saes, data.held_out, lambda n: bar.advance(n, "held-out tokens")
                )
        results = []
        for learner in trainer.learners:
            sae = saes[str(learner.name)][1].cpu()
            name = str(learner.name)
            save_result(folder, learner, sae, figures[name], facts, training.batch_size)
            results.append((learner.name, figures[name], trainer.tokens_per_second()))
    except BaseException:
        # Whatever ended the run, hours of training are not lost with it.
        end_undisturbed()
        if trainer and trainer.step_number:
            facts = data.facts(recipe, source, reader)
            keep_interrupted(folder, trainer.learners, facts, training.batch_size)
        elif main_process:
            withdraw_run(folder)
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


if __name__ == "__main__":
    report_failures(lambda: main(sys.argv[1:]))
