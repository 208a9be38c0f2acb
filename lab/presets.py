"""presets.py owns named sets of train_gpt.py's flags, from the 124M of GPT-2 down to what a laptop trains in minutes.

A preset only changes defaults, and config.json records the plain flags. The command line beats a preset, and a preset
beats the file of --config."""

from __future__ import annotations

# name: (what it is, its flags)
PRESETS = {
    "gpt2": (
        "GPT-2 124M on 10B tokens",
        "--arch gpt2 --n_layer 12 --n_head 12 --n_embd 768 --seq_len 1024 "
        "--total_batch_tokens 491520 --max_train_steps 20000 --optimizer adamw "
        "--learning_rate 6e-4 --schedule cosine"),
    "gpt2-medium": (
        "GPT-2 350M on 10B tokens",
        "--arch gpt2 --n_layer 24 --n_head 16 --n_embd 1024 --seq_len 1024 "
        "--total_batch_tokens 491520 --max_train_steps 20000 --optimizer adamw "
        "--learning_rate 3e-4 --schedule cosine"),
    "speedrun": (
        "document 003's baseline, the October-2024 speedrun with Muon on 2.7B tokens",
        "--arch speedrun --n_layer 12 --n_head 6 --n_embd 768 --seq_len 1024 "
        "--micro_batch_size 16 --total_batch_tokens 524288 --max_train_steps 5100 "
        "--optimizer muon --learning_rate 0.0036 --weight_decay 0 --schedule trapezoid "
        "--warmup_iters 0 --warmdown_iters 1450 --learning_rate_decay_frac 0 --grad_clip 0"),
    "laptop": (
        "GPT-2 of 12M parameters on 1.2M tokens, about 25 minutes on one core",
        "--arch gpt2 --n_layer 6 --n_head 6 --n_embd 192 --seq_len 256 --micro_batch_size 4 "
        "--total_batch_tokens 4096 --max_train_steps 300 --optimizer adamw "
        "--learning_rate 2e-3 --schedule cosine --warmup_iters 40 --eval_every 100 "
        "--val_tokens 30000 --eval_batch_size 8 --save_every 100"),
}
LAPTOP_ADVICE = f"for a laptop: {PRESETS['laptop'][0]} (--preset laptop)"


def help_text() -> str:
    """What each preset sets, for the end of --help."""
    lines = ["presets, each a set of defaults that any flag given beats:"]
    for name, (title, flags) in PRESETS.items():
        lines += [f"  {name}: {title}", f"    {flags}"]
    return "\n".join(lines)


def take(parser, argv) -> None:
    """Makes the flags of --preset the parser's defaults."""
    name = parser.parse_known_args(argv)[0].preset
    if name:
        words = PRESETS[name][1].split()
        values = vars(parser.parse_args(words))
        parser.set_defaults(**{word[2:]: values[word[2:]] for word in words if word.startswith("--")})
