"""What every loss shares: the way from a batch to targets, the two terms, reduction and metrics."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.envs.utils import set_exploration_type
from torchrl.modules import set_recurrent_mode

from torchrl_ddpg import checks, functional, value_estimators
from torchrl_ddpg.losses import batch as entries
from torchrl_ddpg.losses.configuration import ConfigurableLoss


def in_loss_modes(method: Callable) -> Callable:
    """Run a public method with deterministic actions and recurrent networks over whole sequences."""

    @functools.wraps(method)
    def call(self: DeterministicPolicyLoss, *args: Any, **kwargs: Any) -> Any:
        with set_exploration_type(self.deterministic_sampling_mode), set_recurrent_mode(True):
            return method(self, *args, **kwargs)

    return call


class DeterministicPolicyLoss(ConfigurableLoss):
    """What the losses of this library share; not a loss by itself.

    A leaf names its critic and its outputs, and says how target actions are bounded and critics combined.
    """

    critic_loss_key: ClassVar[str]

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModuleBase,
        *,
        loss_function: str,
        delayed: Mapping[str, bool],
        separate_losses: bool,
        reduction: str | None,
        use_prioritized_weights: str | bool,
        priority: str,
        weigh_actor: bool,
    ) -> None:
        super().__init__(actor_network, critic_network, delayed=delayed, separate_losses=separate_losses)
        owner = self._owner
        self.loss_function = checks.choice(owner, "loss_function", loss_function, functional.LOSS_FUNCTIONS)
        self.reduction = checks.choice(owner, "reduction", reduction or "mean", functional.REDUCTIONS)
        self.use_prioritized_weights = checks.choice(
            owner, "use_prioritized_weights", use_prioritized_weights, ("auto", True, False)
        )
        self.priority = checks.choice(owner, "priority", priority, ("absolute", "squared"))
        self.weigh_actor = checks.boolean(owner, "weigh_actor", weigh_actor)
        self._warned_unordered = self._warned_updater = False
        self.make_value_estimator()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Both losses and the metrics; writes the priority into the batch.

        Args:
            *args: the batch, a TensorDict of transitions ``[*B]`` with the entries ``in_keys``.
            **kwargs: or the entries by name, joined with an underscore, as in ``next_reward=...``.

        Returns:
            A TensorDict without batch dimensions that holds ``out_keys``: the losses (scalars with gradient, or
            ``[*B]`` under ``reduction="none"``) and the metrics (scalars without). A tuple in
            the order of ``out_keys`` if the entries came by name.

        Raises:
            BatchError: if an entry is missing or has a shape, dtype or device that cannot be used, or holds NaN.
        """
        if args and not isinstance(args[0], Tensor):
            checks.is_tensordict(self._owner, args[0])
        return self._forward(*args, **kwargs)

    @dispatch(source="call_keys")
    def _forward(self, tensordict: TensorDictBase) -> TensorDict:
        self._check(tensordict, critic=True)
        loss_value, metrics = self._critic_term(tensordict)
        loss_actor, actor_metrics = self._actor_term(tensordict)
        outputs = {"loss_actor": loss_actor, self.critic_loss_key: loss_value, **metrics, **actor_metrics}
        return TensorDict({key: outputs[key] for key in self.out_keys}, batch_size=[])

    @in_loss_modes
    def loss_value(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss and metrics; writes the priority. Gradient reaches the critic alone."""
        self._check(tensordict, critic=True)
        return self._critic_term(tensordict)

    @in_loss_modes
    def loss_actor(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss and metrics. Gradient reaches the actor alone; only its inputs are read."""
        self._check(tensordict, critic=False)
        return self._actor_term(tensordict)

    @in_loss_modes
    def compute_target(self, tensordict: TensorDictBase) -> Tensor:
        """The critic's targets, in the shape of the reward, float32 or wider, without gradient."""
        self._check(tensordict, critic=True)
        return self._targets(tensordict, entries.read_mask(self._owner, tensordict, self.loss_mask_key))

    def _check(self, batch: TensorDictBase, *, critic: bool) -> None:
        if torch.compiler.is_compiling():
            return
        checks.is_tensordict(self._owner, batch)
        self._warn_without_updater()
        self._check_live()
        keys = self.call_keys if critic else self._observed_keys
        values = [batch.get(key, None) for key in keys]
        signature = (
            critic,
            batch.batch_size,
            *((v.shape, v.dtype, v.device) if isinstance(v, Tensor) else None for v in values),
        )
        fresh = signature not in self._seen
        if fresh:
            entries.check_device(
                self._owner, batch, (*keys, *entries.mask_keys(self.loss_mask_key)), self._default_device
            )
            entries.check_inputs(self._owner, batch, self._observed_keys)
        if critic and (fresh or self._on_unordered == "raise"):
            self._check_contents(batch)
        self._seen.add(signature)

    def _warn_without_updater(self) -> None:
        if not self._warned_updater and not self.has_updater:
            self._warned_updater = True
            warnings.warn(checks.no_updater(self._owner), stacklevel=4)

    def _check_contents(self, batch: TensorDictBase) -> None:
        estimator, keys = self.value_estimator, self.tensor_keys
        gamma = batch.get("gamma", None)
        gamma = batch.get(("next", "gamma"), None) if gamma is None else gamma
        if gamma is not None:
            gamma, steps = checks.number(self._owner, "gamma", gamma), entries.find_steps(self._owner, batch, keys)
            value_estimators.check_gamma(self._owner, estimator, gamma, keys.steps_to_next_obs, steps)
        if not value_estimators.chains_steps(estimator) or self._warned_unordered:
            return
        done = batch.get(entries.under_next(keys.done), None)
        for key in self._observed_keys:
            if done is not None and not value_estimators.in_time_order(estimator, batch, key, done):
                self._warned_unordered = self._on_unordered == "warn"
                value_estimators.unordered(self._owner, estimator, key, error=self._on_unordered == "raise")
                return

    def _run(self, name: str, use: str, batch: TensorDictBase) -> TensorDictBase:
        run = getattr(self._nets[name], use)
        if torch.compiler.is_compiling():
            return run(batch)
        try:
            return run(batch)
        except (Warning, torch.OutOfMemoryError, checks.BatchError):
            raise
        except Exception as error:
            named = entries.under_next if use == "run_target" else (lambda key: key)
            module = self._nets[name].module
            reads = {named(key): batch.get(key, None) for key in module.in_keys}
            raise checks.network_failed(self._owner, name, reads, next(module.parameters(), None)) from error

    def _value(self, use: str, batch: TensorDictBase) -> Tensor:
        key = self.tensor_keys.state_action_value
        value = self._run(self.critic_name, use, batch).get(key, None)
        if value is None:
            written = self.__dict__[self.critic_name].out_keys
            raise checks.no_value(self._owner, self.critic_name, key, written)
        return value.to(self._dtype)

    def _target_action(self, inputs: TensorDictBase) -> TensorDictBase:
        """Run the target actor; a leaf bounds or smooths what it says."""
        return self._run("actor_network", "run_target", inputs)

    def _next_value(self, inputs: TensorDictBase) -> Tensor:
        """Value of the next state under the target networks; a leaf with several critics combines them."""
        return self._value("run_target", self._target_action(inputs))

    def _targets(self, batch: TensorDictBase, mask: Tensor | None) -> Tensor:
        owner, keys = self._owner, self.tensor_keys
        transition = entries.read_transition(owner, batch, keys, self._dtype)
        counts = entries.rows(mask, batch)
        if self._mixes_samples:
            goes_on = ~transition.terminated.reshape(*batch.shape, -1).all(-1)
            counts = goes_on if counts is None else counts & goes_on
        inputs = entries.next_inputs(owner, batch, self.actor_in_keys, self._observed_keys, counts)
        next_value = self._next_value(inputs)
        self._like_reward(next_value, transition.reward)
        # Selected, not multiplied: what lies past a terminal state may be NaN.
        next_value = next_value.masked_fill(transition.terminated, 0.0)
        if mask is not None:
            mask = entries.rows(mask, batch)
            transition = transition._replace(reward=entries.hide(transition.reward, mask))
            next_value = entries.hide(next_value, mask)
        return value_estimators.targets(self._value_estimator, batch, next_value=next_value, **transition._asdict())

    def _critic_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        mask = entries.read_mask(self._owner, batch, self.loss_mask_key)
        target = self._targets(batch, mask)
        prediction = self._value("online", self._inputs(batch, self.__dict__[self.critic_name].in_keys, mask))
        self._like_reward(prediction, target)
        prediction, target = (entries.samples(value, batch) for value in (prediction, target))
        if mask is not None:
            mask = checks.per_sample(self._owner, self.loss_mask_key, mask, prediction)
        loss = functional.value_loss(prediction, target, self.loss_function)
        loss = self._reduce_term(self.critic_loss_key, loss, batch, mask, weigh=True)
        error = functional.td_error(prediction, target)
        priority = error.abs() if self.priority == "absolute" else error.square()
        entries.write_priority(self._owner, batch, self.tensor_keys.priority, priority)
        return loss, {
            **functional.mean_and_max("pred_value", prediction, mask),
            **functional.mean_and_max("target_value", target, mask),
        }

    def _actor_value(self, inputs: TensorDictBase) -> Tensor:
        """The critic's value of the actor's action, without gradient to the critic's parameters."""
        return self._value("frozen", self._run("actor_network", "online", inputs))

    def _actor_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        mask = entries.read_mask(self._owner, batch, self.loss_mask_key)
        value = self._actor_value(self._inputs(batch, self._observed_keys, mask))
        loss = -entries.samples(value, batch)
        if mask is not None:
            mask = checks.per_sample(self._owner, self.loss_mask_key, mask, loss)
        return self._reduce_term("loss_actor", loss, batch, mask, weigh=self.weigh_actor), {}

    def _inputs(self, batch: TensorDictBase, keys: Iterable[NestedKey], mask: Tensor | None) -> TensorDict:
        return entries.current_inputs(self._owner, batch, keys, entries.rows(mask, batch))

    def _like_reward(self, value: Tensor, reward: Tensor) -> None:
        if value.shape != reward.shape:
            key, reward_key = self.tensor_keys.state_action_value, entries.under_next(self.tensor_keys.reward)
            raise checks.unequal_shapes(self._owner, "the value", key, value, reward_key, reward)

    def _reduce_term(
        self, term: str, loss: Tensor, batch: TensorDictBase, mask: Tensor | None, *, weigh: bool
    ) -> Tensor:
        key, weight = self.tensor_keys.priority_weight, None
        if weigh and self.use_prioritized_weights is not False:
            weight = batch.get(key, None)
            if weight is None and self.use_prioritized_weights is True:
                raise checks.missing_key(
                    self._owner, batch, key, "the weight that use_prioritized_weights=True asks for"
                )
        if weight is not None:
            weight = checks.number(self._owner, key, weight).to(loss.dtype)
            weight = checks.per_sample(self._owner, key, weight, loss)
        loss = functional.reduce(loss, self.reduction, weight=weight, mask=mask)
        # Elsewhere than on the CPU the question would wait for the device.
        if loss.device.type == "cpu" and not torch.compiler.is_compiling() and not loss.isfinite().all():
            raise checks.not_finite(self._owner, term, batch, self.call_keys)
        return loss
