# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Start here
#
# A language model is fine-tuned by changing its weight matrices. LoRA leaves them as they are and trains a narrow product of two small matrices beside each. In this
# course you build that from nothing: the forward pass, every gradient by hand, and proofs that they are right. You then train real models with it, and
# measure what LoRA saves and what it gives up. All of it is NumPy that one can read, without autograd; an ordinary computer is enough.
#
# The notebooks come with their outputs, so the answer to every question already stands below it. To predict honestly, choose *Edit → Clear Outputs of All Cells* first.
#
# Run the next cell (click it, then Shift+Enter).

# %%
import sys

try:
    import matplotlib
    import numpy as np

    import lora_np as ln
    from lora_np.backend import device_module
except ImportError as error:
    raise SystemExit(
        f"{error}. In a terminal, in the course's folder: `make lab`, "
        "or `pip install -r requirements.txt` and choose that Python as the kernel."
    ) from None

python = sys.version.split()[0]
print(f"Python {python}, NumPy {np.__version__}, Matplotlib {matplotlib.__version__}: all is here.")
if device_module().__name__ == "cupy":
    print("Models are computed on the GPU, with CuPy.")
else:
    print("Models are computed on the processor, with NumPy, which is all the course needs.")

# %% [markdown]
# ## In half a minute
#
# "tiny" is a language model of a million parameters. It has read English prose about Python, and it writes one byte after the other. Does it know Python code? It gets three beginnings to
# continue; then LoRA trains a tenth as many numbers on code; then the same three again. **Predict** what will change: the grammar, the vocabulary, the sense?

# %%
base = ln.load_model("tiny")
model = ln.get_peft_model(base, ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
model.print_trainable_parameters()
beginnings = ["if name", "for line in ", "def read("]


def continued(model, text):
    """One line: the likeliest byte after the other."""
    prompt, end = ln.data.encode(text), ln.data.encode("\n")
    more = ln.generate(model, [prompt], max_new_tokens=45, stop_tokens=end)[0]
    return text + ln.data.decode(more)


before = [continued(model, text) for text in beginnings]
python_library = ln.data.corpus("code", "train")  # the one that is installed here
code = ln.data.Batches(python_library, batch_size=8, seq_len=64)
optimizer, schedule = ln.AdamW(lr=1e-2, weight_decay=0.0), ln.WarmupCosine(60, warmup=5)
history = ln.train(model, code, optimizer, steps=60, schedule=schedule)
for text, was in zip(beginnings, before, strict=True):
    print(f"\nbefore  {was}\nafter   {continued(model, text)}")
print(f"\n{len(history.rows)} steps in {history.rows[-1]['seconds']:.0f} s")

# %% [markdown]
# And longer, with some chance in the choice of each byte:

# %%
beginning = "def read(self, name):\n    return "
sample = ln.generate(model, [ln.data.encode(beginning)], max_new_tokens=200, temperature=0.7, top_k=8, seed=1)[0]
print(beginning + ln.data.decode(sample))

# %% [markdown]
# - *Grammar:* yes. A line that begins as code now goes on as code, with its dots, brackets and colons, where it went on as an English sentence before.
# - *Vocabulary:* yes. `self`, `None` and names with underscores in place of "the" and "of".
# - *Sense:* a little, and not for long. A short line may well be one that a programmer would write. In the longer sample the names mean nothing, and one line has nothing to do with the next. A million
#   parameters are too few for that; notebook 10 trains a model of 135 million.
#
# (LoRA trains as much as a tenth here because the model is so small. The larger the model, the smaller the share: notebook 02 says why.) All that has changed is the narrow product, and one
# line takes it out again:

# %%
with model.disable_adapter():
    print([continued(model, text) for text in beginnings] == before)

# %% [markdown]
# ## The course
#
# | notebook | what you see | minutes | know before |
# |---|---|---|---|
# | [01 The fine-tuning problem](01_the_fine_tuning_problem.ipynb) | why a card that runs a model cannot train it: the memory bill, item by item, measured and on paper | 40 | matrix product |
# | [02 LoRA from one equation](02_lora_from_one_equation.ipynb) | the bypass in seven lines of NumPy, what it saves, a first training run, merging | 30 | matrix product |
# | [03 Gradients by hand](03_gradients_by_hand.ipynb) | the backward pass of LoRA and of every layer, each proven by the complex step | 90 | 02, chain rule |
# | [04 Why low rank works](04_why_low_rank_works.ipynb) | how few numbers a task needs, the change that full fine-tuning really learned, and the directions that two runs share | 45 | 02, singular value decomposition |
# | [05 Convergence](05_convergence.ipynb) | LoRA at several ranks against full fine-tuning, each at its own best learning rate | 30 | 02 |
# | [06 Hyperparameters](06_hyperparameters.ipynb) | learning rate, rank, α, target modules, dropout, batch size: what each knob did here, and how much fits into a rank | 60 | 05 |
# | [07 QLoRA](07_qlora.ipynb) | the frozen weights in four bits: the code, its error, the gradients, merging | 45 | 03, 05 |
# | [08 Merging and multi-LoRA serving](08_merging_and_serving.ipynb) | many adapters on one base, a batch with another in each row, a server; and five ways in which merging lies | 60 | 02 |
# | [09 Other PEFT methods](09_other_peft_methods.ipynb) | prefix tuning, adapters and LoRA's relatives, each in its equation and few lines, compared at its own best learning rate | 60 | 02, 05 |
# | [10 A real language model](10_a_real_language_model.ipynb) | a chat model learns a voice: before and after, and what a step costs | 30 | 02, 05 |
#
# You need Python, the matrix product and the chain rule; no machine-learning library. Each notebook shows the result
# first and asks you to **predict** before it shows more: do, on paper. Minutes are for reading and trying; a notebook runs in under one.
#
# ## Exercises
#
# `make exercises`, in a terminal in the course's folder, writes twelve exercises without their solutions into a new folder `my-exercises`, beside `notebooks`. JupyterLab's file browser, on the left,
# shows both when it was started with `make lab`. You write a function, and `check(your_function)` says whether it is right. If it is not, it names the mistake.
#
# ## JupyterLab in three lines
#
# - Shift+Enter runs a cell and goes to the next. Change anything and run it again.
# - *Kernel → Restart Kernel and Run All Cells* starts from nothing: the cure when the cells no longer fit together.
# - *File → Save Notebook As…* keeps your changes under a name of your own.
#
# ## The code
#
# It is part of the course. `lora_np/ops/` has one file per layer, the forward beside its backward, with the derivation; `lora_np/gradient_check.py` is the proof; `lora_np/peft/lora/layer.py` puts LoRA around a
# linear layer of a model. README lists the rest, from the bottom up.
#
# Go on with [The fine-tuning problem](01_the_fine_tuning_problem.ipynb).
