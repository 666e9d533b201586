"""The collector of a run: in this process, in processes of its own, or on Ray; and what to do when one of them dies."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import time
import warnings
from functools import partial
from importlib import import_module

import torch
from tensordict import TensorDict
from torchrl import collectors
from torchrl.weight_update import SharedMemWeightSyncScheme

from trainer import environments
from trainer.errors import UserError, reason, refusing


class CollectionError(UserError):
    """The collector cannot go on: a worker died, an environment raised, or no batch came in time."""


class StopWaiting(Exception):  # noqa: N818
    """The run was asked to end while it waited for a batch."""


@contextlib.contextmanager
def signals_blocked():
    """Start worker processes that never see Ctrl-C or a closed terminal: the main process tells them when to end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})


@contextlib.contextmanager
def alarms(look):
    """Call ``look(seconds so far)`` twice a second, even while what is inside waits, so that it can raise."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, lambda *_: look(time.monotonic() - began))
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refuse_nan(batch) -> None:
    """Raise if the environment returned NaN or infinity."""
    for key in ("observation_vector", ("next", "observation_vector"), ("next", "reward")):
        if not batch[key].isfinite().all():
            name = key if isinstance(key, str) else " ".join(key)
            raise CollectionError(f"collecting failed: the environment returned NaN or infinity in {name}.")


class Source(contextlib.AbstractContextManager):
    """Where batches come from.

    Attributes:
        error: why no further batch came, or None.
    """

    error: CollectionError | None = None

    @contextlib.contextmanager
    def keeping_errors(self, what: str):
        """Keep an exception from inside as ``error``, so that the run can be saved before it is raised."""
        try:
            yield
        except Exception as error:
            self.error = self.error or CollectionError(f"{what} failed: {reason(error)}.")


class Collecting(Source):
    """Collected batches, one at a time, until all frames are there or ``stop`` is set; workers end with the block.

    Args:
        cfg: the configuration.
        make: makes the environments, given ``seed``.
        policy: acts, with noise.
        stop: an event; once it is set no further batch is waited for.
        done: frames that were collected before the run was resumed.
    """

    def __init__(self, cfg, make, policy, stop, done: int = 0) -> None:
        self.cfg, self.stop, self.schemes = cfg, stop, {}
        size = cfg.steps_per_batch * cfg.env.count
        left, random = (
            max(0, math.ceil(frames / cfg.env.frame_skip / size) * size - done // cfg.env.frame_skip)
            for frames in (cfg.total_frames, cfg.init_random_frames)
        )
        options = {"frames_per_batch": size, "total_frames": left, "init_random_frames": random}
        if cfg.device != "cpu":
            act_on = "cpu" if cfg.collector == "async" else cfg.device  # two processes would take turns on a GPU
            options |= {"policy_device": act_on, "env_device": "cpu", "storing_device": "cpu"}
        # A resumed run's environments begin with other random numbers than the first run's did.
        makers = [partial(make, seed=cfg.seed + 3 + 1_000 * worker + done) for worker in range(cfg.workers)]
        others, ends = multiprocessing.active_children(), signal.getsignal(signal.SIGTERM)
        with signals_blocked(), refusing("the collector could not be started"), alarms(self.starting):
            if cfg.collector == "sync":
                env = makers[0]()
                self.collector = collectors.Collector(env, policy, trust_policy=True, **options)
                self.generators, self.stateless = environments.generators(env), not env.base_env.state_spec.is_empty()
            elif cfg.collector == "async":
                self.schemes = {"policy": SharedMemWeightSyncScheme()}
                options |= {"weight_sync_schemes": self.schemes}
                self.collector = collectors.MultiAsyncCollector(makers, policy, **options)
            else:
                ray_collector = import_module("torchrl.collectors.distributed").RayCollector
                quiet = {"log_to_driver": False, "logging_level": "error"}  # TorchRL prints every collector, whole
                with warnings.catch_warnings():  # that workers stop acting randomly at different moments
                    warnings.filterwarnings("ignore", "async distributed data collection", UserWarning)
                    self.collector = ray_collector(makers, policy, ray_init_config=quiet, **options)
                signal.signal(signal.SIGTERM, ends)  # Ray ends the process at once

        self.processes = [child for child in multiprocessing.active_children() if child not in others]

    def __iter__(self):
        if self.cfg.collector == "ray":  # which warns if its workers were never told weights
            self.send_weights()
        batches = iter(self.collector)
        while self.error is None and not self.stop.is_set():
            with self.watching():
                batch = next(batches, None)
                if batch is None:
                    return
                refuse_nan(batch)
            if self.error is None and not self.stop.is_set():
                torch.set_num_threads(self.cfg.threads)  # TorchRL's environments change them when they begin and close
                yield batch

    def send_weights(self) -> None:
        """Let the policy that collects have the actor's new weights."""
        with self.watching():
            self.collector.update_policy_weights_()

    @contextlib.contextmanager
    def watching(self):
        """Keep as ``error`` what goes wrong inside: an exception, a worker process that died, a wait too long."""
        try:
            with alarms(self.look):
                yield
        except StopWaiting:
            pass
        except CollectionError as error:
            self.error = self.error or error
        except Exception as error:
            self.error = self.error or CollectionError(f"collecting failed: {self.dead_worker() or reason(error)}.")

    def dead_worker(self) -> str:
        """A sentence on a worker process that is no more, or nothing."""
        alive = multiprocessing.active_children()
        return "a worker process died" if any(process not in alive for process in self.processes) else ""

    def starting(self, waited: float) -> None:
        """Raise if the collector's processes do not begin, such as those for which Ray's cluster has no CPU."""
        if waited > self.cfg.timeout:
            raise CollectionError(
                f"the collector did not begin within {waited:.0f} seconds (--collector.timeout); with Ray, each of the "
                f"--collector.workers takes a CPU."
            )

    def look(self, waited: float) -> None:
        """Raise if there is no point in waiting any longer."""
        if self.stop.is_set() and self.cfg.collector != "sync":
            raise StopWaiting
        # Synchronously, TorchRL looks itself, and ends its workers while the last batch is waited for.
        if self.cfg.collector != "sync" and self.dead_worker():
            raise CollectionError(f"collecting failed: {self.dead_worker()}.")
        if waited > self.cfg.timeout:
            raise CollectionError(f"collecting failed: nothing came for {waited:.0f} seconds (--collector.timeout).")

    def share_threads(self) -> None:
        """Leave a core to the collector's process until the next batch lies in its queue, then take it back."""
        cfg = self.cfg
        if cfg.collector == "async" and cfg.threads > 1 and cfg.device == "cpu":  # torch.compile compiles anew for it
            torch.set_num_threads(cfg.threads - self.collector.queue_out.empty())

    def state_dict(self) -> dict:
        """Random generators of the environments in this process, and the state of those that keep none themselves."""
        if self.cfg.collector != "sync":
            return {}
        states = [
            generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state
            for generator in self.generators
        ]
        carrier = self.collector._carrier.flatten_keys(" ").clone().to_dict() if self.stateless else {}
        return {"generators": states, "carrier": carrier}

    def load_state_dict(self, state: dict) -> None:
        """Go on with these; an environment that keeps its state to itself begins a new episode."""
        if self.cfg.collector != "sync":
            return
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            if isinstance(generator, torch.Generator):
                generator.set_state(saved)
            else:
                generator.bit_generator.state = saved
        if state["carrier"]:
            self.collector._carrier.update(TensorDict(state["carrier"]).unflatten_keys(" "))
        else:
            self.collector.reset()

    def __exit__(self, *_) -> None:
        def look(waited: float) -> None:
            if waited > 20:
                raise StopWaiting

        with signals_blocked(), contextlib.suppress(Exception), alarms(look):
            for process in self.processes if self.error is not None else ():  # an orderly end would wait for them
                with contextlib.suppress(ValueError):  # closed already
                    process.kill()
            self.collector.shutdown()
            for scheme in self.schemes.values():  # left to __del__, it starts a thread while Python ends, and waits
                scheme.shutdown()
