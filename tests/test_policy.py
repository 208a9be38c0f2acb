"""policy.py and rewards.py on small tensors and texts: TRL's losses, finite differences, what a human would give."""

import ast
import importlib.util
import itertools
import math
import textwrap
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import eval_gsm8k
from inject_mul import MulExpressionInjector
from lab import policy, rewards
from lab.loss import IGNORE, token_nll
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, get_tokenizer

# ----------------------------------------------------------------------------------------------------------------------
# TRL's own lines, taken from its source so that its imports (half a minute) are not needed


def trl_source(name):
    spec = importlib.util.find_spec("trl")
    if spec is None:
        pytest.skip("trl is not installed: pip install trl accelerate")
    return (Path(spec.origin).parent / "trainer" / f"{name}.py").read_text(encoding="utf-8")


def trl_function(module, name, **names):
    """A function or method of TRL, by name."""
    text = trl_source(module)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            scope, lines = {"torch": torch, **names}, text.splitlines()[node.lineno - 1 : node.end_lineno]
            exec(compile(textwrap.dedent("\n".join(lines)), name, "exec"), scope)
            return scope[name]
    raise AssertionError(f"this TRL has no {name} in {module}")


def trl_advantages(module, values, scaled):
    """Advantages (P, G) by the lines of TRL that follow its rewards."""
    text = trl_source(module)
    start = text.index("        unscorable_mask = torch.isnan(rewards_per_func)")
    end = text.index("        # Slice to keep only the local part of the data", start)
    trainer = SimpleNamespace(
        reward_weights=torch.ones(1), multi_objective_aggregation="sum_then_normalize", beta=0.0,
        scale_rewards=scaled, reward_clip_range=None, normalize_advantages=False)
    scope = {"torch": torch, "self": trainer, "device": "cpu", "rewards_per_func": values.reshape(-1, 1).clone(),
             "num_generations": values.size(1), "mode": "train", "nanstd": trl_function("utils", "nanstd")}
    exec(compile(textwrap.dedent(text[start:end]), "advantages", "exec"), scope)
    return scope["advantages"].view_as(values)


def problem(seed, n_groups=3, size=4, width=7):
    """Tensors of a step (P * G, T), with lengths from 1 to T, ratios far from 1, and one flat group."""
    g = torch.Generator().manual_seed(seed)
    n = n_groups * size
    log_p = -torch.rand(n, width, generator=g, dtype=torch.float64) * 3
    old = log_p + 0.4 * torch.randn(n, width, generator=g, dtype=torch.float64)
    reference = log_p + 0.5 * torch.randn(n, width, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, width + 1, (n,), generator=g)
    lengths[0] = width
    mask = (torch.arange(width) < lengths[:, None]).double()
    values = torch.randint(0, 2, (n_groups, size), generator=g).double()
    values += 0.25 * torch.rand(n_groups, size, generator=g)
    values[-1] = 0.1
    return log_p, old, reference, mask, values


def ours(log_p, old, reference, mask, values, name, kl_coef, clip=0.2, max_new_tokens=11):
    owner = mask.nonzero()[:, 0]
    at = mask.bool()
    lengths = mask.sum(1)
    how = policy.NORMALIZATIONS[name]
    weights = how.weights(lengths, policy.Sizes(len(mask), int(mask.sum()), max_new_tokens))
    return policy.objective(
        log_p[at], old[at], reference[at], owner, policy.advantages_of(values, name).flatten(), weights, clip=clip,
        kl_coef=kl_coef, per_completion=how.per_completion)


def theirs(log_p, old, reference, mask, values, name, kl_coef, clip=0.2, max_new_tokens=11):
    """(loss, clip share) of TRL on the same tensors."""
    module = "rloo_trainer" if name == "rloo" else "grpo_trainer"
    scaled = "none" if name in ("dr_grpo", "rloo") else "group"
    advantages = trl_advantages(module, values, scaled).flatten()
    metrics = {"train": defaultdict(list)}
    accelerator = SimpleNamespace(num_processes=1, reduce=lambda t, reduction: t, gather=lambda t: t)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_p, torch.zeros_like(log_p), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=kl_coef,
        importance_sampling_level="token", args=SimpleNamespace(
            use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type=name, epsilon_low=clip, epsilon_high=clip, use_vllm=False, accelerator=accelerator,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, _metrics=metrics,
        max_completion_length=max_new_tokens, _entropy_bonus_enabled=False)
    nothing = torch.zeros(len(mask), 1)
    inputs = {"prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": mask, "completion_mask": mask,
              "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
              "old_logps": (old * mask).sum(1), "num_items_in_batch": mask.sum()}
    helpers = {name: trl_function("utils", name) for name in ("nanmin", "nanmax")}
    loss = trl_function(module, "_compute_loss", **helpers)(trainer, None, inputs)
    return loss, metrics["train"]["clip_ratio/region_mean"][0], metrics["train"].get("kl", [None])[0]


@pytest.mark.parametrize("name", policy.NORMALIZATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_trl(name, seed):
    """|our loss - TRL's| and |gradients' difference| on the same tensors: at most 1e-6; the share of clipped
    tokens and the KL are TRL's, too. TRL's RLOO has its KL in the reward, so there the loss is compared without."""
    kl_coef = 0.0 if name == "rloo" else 0.3
    tensors = problem(seed)
    first, second = (tensors[0].clone().requires_grad_() for _ in range(2))
    loss, figures = ours(first, *tensors[1:], name, kl_coef)
    want, clip_share, kl = theirs(second, *tensors[1:], name, kl_coef)
    assert abs(loss.item() - want.item()) < 1e-6 and abs(loss.item()) > 1e-3
    loss.backward()
    want.backward()
    assert (first.grad - second.grad * tensors[3]).abs().max() < 1e-6 and first.grad.abs().max() > 1e-3
    if name != "rloo":  # there it is a share of completions
        assert math.isclose(figures["clipped"] / tensors[3].sum().item(), clip_share, abs_tol=1e-6)
        assert math.isclose(figures["kl"] / tensors[3].sum().item(), kl, rel_tol=1e-6)


@pytest.mark.parametrize("name, scaled, module", [
    ("dr_grpo", "none", "grpo_trainer"), ("grpo", "group", "grpo_trainer"), ("dapo", "group", "grpo_trainer"),
    ("rloo", "none", "rloo_trainer")])
def test_advantages_are_those_of_trl(name, scaled, module):
    """|advantage - TRL's|: at most 1e-6, for rewards of every size, and exactly 0 in a flat group."""
    values = problem(5, n_groups=6, size=8)[-1] * 3 - 1
    got, want = policy.advantages_of(values, name), trl_advantages(module, values, scaled)
    assert (got - want).abs().max() < 1e-6 and got.abs().max() > 0.5
    assert (got[-1] == 0).all() and policy.is_flat(values).tolist() == [False] * 5 + [True]


def test_advantages_by_hand():
    """Rewards 1, 0, 0, 0: 0.75 and -0.25; by the group's sd of 0.5; against the others' mean."""
    values = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    assert policy.advantages_of(values, "dr_grpo").tolist() == [[0.75, -0.25, -0.25, -0.25]]
    assert torch.allclose(policy.advantages_of(values, "grpo")[0, 0], torch.tensor(0.75 / 0.5001, dtype=torch.float64))
    assert torch.allclose(policy.advantages_of(values, "rloo")[0], torch.tensor([1, -1 / 3, -1 / 3, -1 / 3]).double())


@pytest.mark.parametrize("name", policy.NORMALIZATIONS)
def test_gradients_are_finite_differences(name):
    """|analytic - central difference| of the loss in every log-prob: at most 1e-8."""
    log_p, old, reference, mask, values = problem(2, n_groups=2, size=3, width=4)
    x = log_p.clone().requires_grad_()
    ours(x, old, reference, mask, values, name, 0.3)[0].backward()
    eps = 1e-6
    for row, column in itertools.product(range(log_p.size(0)), range(log_p.size(1))):
        sides = []
        for sign in (1, -1):
            moved = log_p.clone()
            moved[row, column] += sign * eps
            sides.append(ours(moved, old, reference, mask, values, name, 0.3)[0].item())
        assert abs((sides[0] - sides[1]) / (2 * eps) - x.grad[row, column].item()) < 1e-8


def test_k3_by_hand():
    """k3 at q = 2: 2 - log 2 - 1; it is 0 at q = 1, never negative, and its mean over p is KL(p, reference)."""
    assert math.isclose(policy.k3(torch.tensor(0.0), torch.tensor(math.log(2.0))).item(), 1 - math.log(2), rel_tol=1e-6)
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    values = policy.k3(p.log(), q.log())
    assert (values >= 0).all() and policy.k3(p.log(), p.log()).abs().max() == 0
    assert math.isclose((p * values).sum().item(), (p * (p / q).log()).sum().item(), rel_tol=1e-12)


def test_clip_holds_the_gradient_back():
    """Gradient of a token beyond the clip: 0 where the ratio has moved far enough, else that of the ratio."""
    for log_ratio, advantage, moves in ((0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False)):
        x = torch.tensor(log_ratio, requires_grad=True)
        policy.clipped(x, torch.tensor(advantage), 0.2).backward()
        assert bool(x.grad != 0) == moves
        assert policy.is_clipped(x.detach(), torch.tensor(advantage), 0.2).item() != moves


def test_weight_of_zero_leaves_a_completion_out():
    """A masked completion's share in loss, KL and gradient: 0."""
    log_p, old = torch.zeros(4, requires_grad=True), torch.tensor([0.1, 0.2, 0.3, 0.4])
    weights, owner = torch.tensor([1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    loss, figures = policy.objective(log_p, old, old, owner, torch.ones(2), weights, clip=0.2, kl_coef=1.0)
    loss.backward()
    assert log_p.grad[2:].abs().max() == 0 and (log_p.grad[:2] != 0).all()
    assert math.isclose(figures["kl"], policy.k3(log_p.detach(), old)[:2].sum().item(), rel_tol=1e-6)


def test_token_nll_is_cross_entropy():
    """-log p and both gradients against torch's cross-entropy under any weights of the tokens, one of which is not
    scored: at most 1e-5 apart."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(9, 5, generator=g), torch.randn(30, 5, generator=g)
    targets, scale = torch.randint(0, 20, (9,), generator=g), torch.randn(9, generator=g)
    targets[4] = IGNORE
    grads = []
    for function in (lambda a, b: token_nll(a, b, targets, [(20, 25)]),
                     lambda a, b: torch.nn.functional.cross_entropy(
                         (a @ b.t()).index_fill(1, torch.arange(20, 25), -math.inf), targets, reduction="none")):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        nll = function(a, b)
        (nll.exp().log1p() * scale).sum().backward()
        grads.append((nll.detach(), a.grad, b.grad))
    for one, other in zip(*grads, strict=True):
        assert (one - other).abs().max() < 1e-5


# ----------------------------------------------------------------------------------------------------------------------
# pass@k and majority


def test_pass_at_k_is_brute_force():
    """|pass@k - share of all k-subsets with a right one|: at most 1e-12, for every n, c and k up to 7."""
    for n in range(1, 8):
        for right, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([i < right for i in range(n)], k))
            want = sum(map(any, subsets)) / len(subsets)
            assert abs(eval_gsm8k.pass_at_k(n, right, k) - want) < 1e-12


@pytest.mark.parametrize("answers, credit", [
    (["5", "5", "6"], 1.0), (["6", "6", "5"], 0.0), (["5", "6"], 0.5), (["5", "6", "7", None], 1 / 3),
    ([None, None], 0.0), (["5", None, None, None], 1.0), ([], 0.0)])
def test_majority(answers, credit):
    """Credit of the commonest answer when 5 is right: a tie is shared, no answer has no vote."""
    assert math.isclose(eval_gsm8k.majority(answers, "5"), credit)


# ----------------------------------------------------------------------------------------------------------------------
# rewards: what a human would give

GOLD = Fraction(54)
DIGITS = "9" * 10_000


def attempt(text, ended=True, after=""):
    ids = get_tokenizer().encode(text)
    if ended:
        ids = [*ids, BOS_ID, *get_tokenizer().encode(after)]
    return rewards.read(ids, GOLD, "0/1/0/x/0")


@pytest.mark.parametrize("text, right", [
    (" 6 * 9 = 54\n#### 54", True),
    (" #### #### #### 54", True),  # the mark repeated, one answer
    (" #### 54\n#### 54\n#### 54", True),
    ("#### " * 50, False),
    (" #### 54\n#### 55", False),  # two answers: neither was given
    (" #### 55\n#### 54", False),
    (" #### 54 or 55", False),
    (" #### 53, 54, 55", False),
    (" #### <MUL_6_9_54>", True),  # read as 6*9=54 in every arm
    (" #### <MUL_6_9_55>", False),  # no such token: its digits are no answer
    (" <MUL_6_9_54>", False),
    (" #### <MUL_6_8_48> 54", False),
    (" 54", False),  # never said to be the answer
    (" the answer is 54", False),
    ("", False), (" ", False), ("####", False), (" ####\n54", False),
    (f" #### {DIGITS}", False), (f" #### 54{DIGITS}", False), (f" {DIGITS}\n#### 54", True),
    (" #### 54.0", True), (" #### $54", True), (" #### 54 apples", True), (" #### 6*9", False), (" #### -54", False),
    (" #### 54\nUser: and 6 * 8?\nAssistant: #### 48", True),  # what follows a new User: was not asked
    (" I do not know.\nUser: x\nAssistant: #### 54", False),
    (" #### ５４", False), (" #### 5 4", False), (" #### 54e0", True),
])
def test_exact_is_what_a_human_would_give(text, right):
    """Wrong rewards of completions that try to be paid without one right answer: 0."""
    assert rewards.exact(attempt(text)) == float(right)
    assert rewards.exact(attempt(text, ended=False)) == float(right)


def test_what_follows_the_end_is_not_read():
    """An answer after <|endoftext|> pays nothing, and takes nothing away."""
    assert rewards.exact(attempt(" I do not know.", after=" #### 54")) == 0
    assert rewards.exact(attempt(" #### 54", after=" #### 55")) == 1
    assert rewards.exact(rewards.read([BOS_ID], GOLD)) == 0 == rewards.exact(rewards.read([], GOLD))


def test_mul_token_pays_as_its_text():
    """One token <MUL_6_9_54> and `6*9=54`: the same rewards, of both kinds, right and wrong."""
    token = FIRST_MUL_ID + 38  # <MUL_6_9_54>
    encode = get_tokenizer().encode
    for before, after in ((" #### ", ""), (" He has ", " apples.\n#### 54"), (" He has ", " apples.\n#### 50")):
        one = rewards.read([*encode(before), token, *encode(after), BOS_ID], GOLD)
        other = rewards.read([*encode(f"{before}6*9=54{after}"), BOS_ID], GOLD)
        assert "6*9=54" in one.text
        for kind in ("exact", "shaped"):
            assert rewards.reward_of(kind, one) == rewards.reward_of(kind, other)


TEXTS = [before + answer + after for before, answer, after in itertools.product(
    ["", " He has <MUL_6_9_54> eggs.\n", " 6*9=54\n", "<MUL_", " #### 54\n"],
    ["#### 54", "#### 53.9", "#### 55", "#### <MUL_6_9_54>", "#### <MUL_1_2_2>", "#### ", "54", "#### 1e300",
     "#### -54"],
    ["", " apples", "\nUser: x", "\n#### 54", " <MUL_6_9_54>"])]


def test_shaped_is_bounded_and_blind_to_tokens():
    """Wrong answers whose shaped reward reaches 0.5: none (0.2 is the most). Rewards that expanding the tokens of a
    text changes: none, nor that writing its products as tokens does."""
    injector, expand = MulExpressionInjector("weak"), MulExpressionInjector().expand
    for text, ended in itertools.product(TEXTS, (True, False)):
        one = attempt(text, ended)
        value = rewards.shaped(one)
        if rewards.is_right(one):
            assert value >= rewards.RIGHT_OPEN
        else:
            assert 0 <= value <= 0.2
        for kind in ("exact", "shaped"):
            assert rewards.reward_of(kind, attempt(expand(text), ended)) == rewards.reward_of(kind, one)
            injected = injector.inject(expand(text))[0]
            assert rewards.reward_of(kind, attempt(injected, ended)) == rewards.reward_of(kind, one)


def test_shaped_prefers_form_and_closeness():
    """Right and ended > right and open > wrong, close and ended > wrong and close > wrong and far > nothing = 0."""
    texts = [(" #### 54", True), (" #### 54", False), (" #### 53", True), (" #### 53", False), (" #### 30", False)]
    values = [rewards.shaped(attempt(text, ended)) for text, ended in texts]
    assert values == sorted(set(values), reverse=True) and values[0] == 1
    assert rewards.shaped(attempt(" I do not know.")) == 0 == rewards.shaped(attempt(""))


def test_controls():
    """The coin has mean 0.5, knows nothing of the text, and falls the same way for the same completion."""
    names = [f"0/1/{place}/x/{number}" for place in range(100) for number in range(8)]
    coins = [rewards.coin(rewards.Attempt("", True, GOLD, name)) for name in names]
    assert 0.44 < sum(coins) / len(coins) < 0.56
    assert coins == [rewards.coin(rewards.Attempt(" #### 54", False, GOLD, name)) for name in names]
    assert rewards.zero(attempt(" #### 54")) == 0


def test_reward_that_is_no_number_is_refused(monkeypatch):
    """Steps that a reward of NaN or infinity would spoil: none; the sentence names the completion."""
    for value in (math.nan, math.inf):
        monkeypatch.setitem(rewards.REWARDS, "exact", lambda attempt, value=value: value)
        with pytest.raises(ValueError, match="--reward exact gave .* for 0/1/0/x/0 .*repair the reward"):
            rewards.reward_of("exact", attempt(" #### 54"))


# ----------------------------------------------------------------------------------------------------------------------
# extraction, beside the neighbours' rules


def load_extraction():
    path = Path(__file__).resolve().parents[1] / "experiments" / "2026-11-26_grpo" / "extraction.py"
    spec = importlib.util.spec_from_file_location("extraction", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, path.with_suffix(".md").read_text(encoding="utf-8")


def test_extraction_table_is_what_the_rules_say():
    """Lines of the committed table that its script would print otherwise: none; the rules differ in 40 or more, and the
    reward says what a human says more often than any other rule."""
    extraction, committed = load_extraction()
    assert extraction.table() + "\n" == committed
    differing, agree = 0, dict.fromkeys(extraction.RULES, 0)
    for text, gold, right, _ in extraction.CASES:
        said = {name: rule(text, gold) for name, rule in extraction.RULES.items()}
        differing += len(set(said.values())) > 1
        for name, value in said.items():
            agree[name] += value == right
    assert differing >= 40 and len({text for text, *_ in extraction.CASES}) == len(extraction.CASES)
    assert max(agree, key=agree.get) == "ours, reward"


def test_harness_rules_are_its_own():
    """Answers where our copy of lm-evaluation-harness' rules says something else than its filters and metric: none."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    import yaml
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    extraction, _ = load_extraction()
    folder = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks" / "gsm8k"
    task = yaml.safe_load((folder / "gsm8k.yaml").read_text())
    [metric] = task["metric_list"]
    for number, name in enumerate(("harness, strict", "harness, flexible")):
        settings = {key: value for key, value in task["filter_list"][number]["filter"][0].items() if key != "function"}
        for text, gold, *_ in extraction.CASES:
            [[said]] = RegexFilter(**settings).apply([[text]], [{}])
            theirs = exact_match_hf_evaluate([said], [f"#### {gold}"], metric["regexes_to_ignore"], ignore_case=True)
            assert bool(theirs["exact_match"]) == extraction.RULES[name](text, gold), (name, text)
