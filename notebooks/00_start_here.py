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
# What does LoRA do, and what is in this course? This notebook trains a first LoRA adapter in a few seconds and then shows the plan of the course.
#
# **You will learn** to
#
# - check that your installation works;
# - train an adapter on a small language model, and compare the text that the model writes before and after the training;
# - find the notebooks, the notation and the exercises of the course.
#
# **Before you start:** you can read Python code. You need no knowledge of machine learning for this notebook.
#
# *Reading: 15 minutes. Tasks: 10 minutes. Running: about 15 seconds.*
#
# Fine-tuning a language model changes the weight matrices of the model. LoRA (low-rank adaptation) leaves the weight matrices unchanged. LoRA trains two small matrices beside each weight matrix. The model then computes with the weight matrix plus the product of the two small matrices. All small matrices together are the *adapter*. In this course you
# build LoRA from nothing: the forward pass, each gradient by hand, and the tests of the gradients. You also train real models, and measure what LoRA saves and what it loses. All code of the course uses NumPy, without automatic differentiation.
# An ordinary computer is enough for the course.
#
# The command `make lab` opens a copy of the course in which no cell has an output. The copy is in the folder `my-course`, and you can change it as you like. If you see outputs below, you are reading a notebook that was already run. In this case, write down each prediction before you look at the next output.
#
# To run the next cell, click it, then press Shift+Enter.

# %%
import sys

try:
    import matplotlib
    import numpy as np

    import lora_np as ln
    from lora_np.backend import device_module
except ImportError as error:
    raise SystemExit(
        f"{error}. Open a terminal in the folder of the course and run `make lab`. Or run "
        "`pip install -r requirements.txt` and choose the Python of this `pip` as the kernel."
    ) from None

python = sys.version.split()[0]
versions = f"NumPy {np.__version__}, Matplotlib {matplotlib.__version__}"
print(f"Python {python}, {versions}: complete.")
if device_module().__name__ == "cupy":
    print("The models run on the GPU, with CuPy.")
else:
    print("The models run on the CPU, with NumPy. The course needs no GPU.")

# %% [markdown]
# ## A first adapter
#
# The model "tiny" is a language model with a million parameters. It was trained on English prose about Python. It writes text one byte (one letter) at a time. Its training text contained little Python code.
#
# The next cell gives the model the beginnings of three code lines, and the model continues each line. Then the cell trains a LoRA adapter on Python code for sixty steps. After the training, the model with the adapter continues the three beginnings again. In each training step, the model reads a few pieces of Python code, and the numbers of the adapter change a little, so the model gives these pieces a higher probability.
#
# **Predict.** What will the training change in the text that the model writes: the grammar, the vocabulary or the meaning?

# %%
base = ln.load_model("tiny")
config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
model = ln.get_peft_model(base, config)
model.print_trainable_parameters()
beginnings = ["if name", "for line in ", "def read("]


def continued(model, text):
    """Continue `text` to the end of the line, always with the most likely byte."""
    prompt, end = ln.data.encode(text), ln.data.encode("\n")
    more = ln.generate(model, [prompt], max_new_tokens=45, stop_tokens=end)[0]
    return text + ln.data.decode(more)


before = [continued(model, text) for text in beginnings]
python_library = ln.data.corpus("code", "train")  # the standard library of this Python
code = ln.data.Batches(python_library, batch_size=8, seq_len=64)
optimizer, schedule = ln.AdamW(lr=1e-2, weight_decay=0.0), ln.WarmupCosine(60, warmup=5)
history = ln.train(model, code, optimizer, steps=60, schedule=schedule)
for text, first in zip(beginnings, before, strict=True):
    print(f"\nbefore  {first}\nafter   {continued(model, text)}")
print(f"\n{len(history.rows)} steps in {history.rows[-1]['seconds']:.0f} s")

# %% [markdown]
# In the next cell, the model with the adapter writes a longer text. Each byte of this text is drawn at random from the eight most likely bytes.

# %%
beginning = "def read(self, name):\n    return "
prompt = ln.data.encode(beginning)
sample = ln.generate(model, [prompt], max_new_tokens=200, temperature=0.7, top_k=8, seed=1)[0]
text = beginning + ln.data.decode(sample)
print("\n".join(line[:90] for line in text.split("\n")))  # the ends of long lines are cut

# %% [markdown]
# - *Grammar:* the grammar changes. A short line that begins as code now continues as code, with dots, brackets and colons. Before the training, the model continued this line as an English sentence.
# - *Vocabulary:* the words change. The model now writes names such as `self` and `None`, and names with underscores. Words such as "the" and "of" still appear in the longer text.
# - *Meaning:* the text after the training has hardly more meaning than the text before. A short line may look as if a programmer wrote it. In the longer text the names mean nothing, and the lines do not belong together. A model with a million
#   parameters is too small to write meaningful code. Notebook 10 trains a model with 135 million parameters.
#
# Training has changed only the adapter. One line of code switches the adapter off, and then the model writes the same text as before the training:

# %%
with model.disable_adapter():
    print([continued(model, text) for text in beginnings] == before)

# %% [markdown]
# The model tiny has about ten times as many parameters as the adapter. In larger models, the adapter is even smaller compared with the model. Notebook 02 explains why.
#
# ## The course
#
# | notebook | its question | minutes: reading + tasks | before you start |
# |---|---|---|---|
# | [01 The fine-tuning problem](01_the_fine_tuning_problem.ipynb) | Why can a GPU run a model but not train it? | 60 + 30 | matrix product, the idea of a gradient |
# | [02 LoRA from one equation](02_lora_from_one_equation.ipynb) | What is LoRA, in equations and in 200 lines of code? | 45 + 30 | matrix product; one section needs the chain rule |
# | [03 Gradients by hand](03_gradients_by_hand.ipynb) | How are LoRA's gradients derived, and how can one prove that they are right? | 65 + 45 | 02, chain rule |
# | [03b Gradients of the whole model](03b_gradients_of_the_whole_model.ipynb) | How do gradients pass through attention, norms and the MLP? | 90 + 60 | 03 |
# | [04 Why low rank works](04_why_low_rank_works.ipynb) | Why is a change of low rank enough? | 90 + 50 | 02, singular value decomposition |
# | [05 Convergence](05_convergence.ipynb) | Does LoRA reach the loss of full fine-tuning? | 45 + 25 | 02 |
# | [06 Hyperparameters](06_hyperparameters.ipynb) | Which learning rate, rank, α and target modules work well? | 65 + 30 | 02, 03, 05 |
# | [06b How much fits into a rank](06b_capacity.ipynb) | How much can an adapter of rank r remember? | 40 + 20 | 02, cross-entropy loss |
# | [07 QLoRA](07_qlora.ipynb) | What do frozen weights in four bits save and lose? | 65 + 30 | 03, 05 |
# | [08 Merging and multi-LoRA serving](08_merging_and_serving.ipynb) | How do many adapters share one base? | 55 + 30 | 02 |
# | [09 Other PEFT methods](09_other_peft_methods.ipynb) | Which other methods train few parameters? | 100 + 30 | 02, 05 |
# | [10 A real language model](10_a_real_language_model.ipynb) | What does a chat model learn and forget? | 45 + 25 | 02, 05 |
#
# Each notebook shows a result before its derivation. **Predict** asks you to write down a guess before you look at the next output. In the column "minutes", the first number is the time for reading the notebook, including the predictions and the three questions. The second number is the time for the tasks at the end ("Try"). The minutes are estimates. Most notebooks run in less than half a minute.
#
# ## Notation
#
# Each letter in the table has the same meaning in all notebooks, with few exceptions. Only two letters, $z$ and $v$, have two meanings in the table. The notebooks introduce the letters one by one, so you need not learn the table now. If a notebook uses another letter, or a letter of the table with another meaning, the notebook says so.
#
# | letter | meaning | shape |
# |---|---|---|
# | $x$, $y$ | input and output of a linear layer | (b, t, in), (b, t, out) |
# | $W$ | frozen weight matrix of a linear layer | (out, in) |
# | $A$, $B$ | trained matrices of LoRA | (r, in), (out, r) |
# | $r$ | rank | number |
# | $\alpha$, $s = \alpha / r$ | `lora_alpha` and LoRA's scaling | numbers |
# | $\Delta W = s\,BA$ | change of $W$ | (out, in) |
# | $h = x A^\top$ | LoRA's hidden features | (b, t, r) |
# | $L$ | loss | number |
# | $dz$ | gradient $\partial L / \partial z$ of any array $z$ | shape of $z$ |
# | $b$, $t$, $N = b \cdot t$ | rows of a batch, tokens per row, tokens of a batch | numbers |
# | $d$, $f$ | hidden size and MLP size of the model | numbers |
# | $n$, $d_h$ | number of attention heads and size of one head | numbers |
# | $q$, $k$, $v$ | queries, keys and values | (b, n, t, d_h) |
# | $S$, $P$ | attention scores and attention weights | (b, n, t, t) |
# | $z$ | logits: one number per possible next token | (b, t, vocabulary) |
# | $p$ | dropout probability | number |
# | $\eta$ | learning rate | number |
# | $m$, $v$ | in explanations of AdamW's update: running mean of the gradient, and running mean of the squared gradient | shape of the parameter |
# | $\varepsilon$ | small constant | number |
# | $U$, $\sigma_i$, $V^\top$ | singular value decomposition; $u_i$ and $v_i$ are singular vectors | – |
#
# A loss is the mean of $-\ln$ of the probability that the model gives to the correct next byte or token. The unit is *nats per byte* for the model tiny, and *nats per token* for the model SmolLM2. A lower loss is better.
#
# In all pictures, grey stands for frozen weights, cyan for LoRA and coral for full fine-tuning.
#
# ## Exercises
#
# The folder `exercises`, beside this notebook, has twelve exercises. In an exercise you write a function, and `check(your_function)` tests it. If the function is wrong, `check` names the mistake.
#
# ## JupyterLab in three lines
#
# - Shift+Enter runs a cell and goes to the next cell. You can change any cell and run it again.
# - *Kernel → Restart Kernel and Run All Cells* starts again from the beginning. Restart if the results of the cells no longer fit together.
# - *File → Save Notebook As…* saves your changes under a new name.
#
# ## The code
#
# The code is part of the course. `lora_np/micro.py` is LoRA in one file. With notebook 02, read this file up to the function `merge`. After notebook 03b, read the rest of the file. Each file of `lora_np/ops/` has the forward pass, the backward pass and the derivation of one kind of layer. `lora_np/peft/lora/layer.py` adds LoRA to a
# linear layer of a model. `lora_np/gradient_check.py` tests gradients. The file `README.md` lists the other parts of the code.
#
# ## Recap
#
# - LoRA leaves the weights of a model unchanged and trains two small matrices beside each weight matrix.
# - A few seconds of training change the grammar and the vocabulary of the text that the model writes.
# - If the adapter is switched off, the model writes the same text as before the training.
#
# ## Three questions
#
# 1. Which numbers did the training change: the numbers of the model tiny, the numbers of the adapter, or both?
#
# <details><summary>Answer</summary>
#
# The training changed only the numbers of the adapter. Without the adapter the model writes the same text as before the training, so the cell with `disable_adapter` prints `True`.
#
# </details>
#
# 2. Why does the text become Python code, although the model tiny was trained on English?
#
# <details><summary>Answer</summary>
#
# The adapter was trained on Python code. The base model knows letters, words and the order of words in a sentence. With the adapter, the model gives a higher probability to bytes that continue Python code.
#
# </details>
#
# 3. Does a loss of 1.0 nats per byte mean a better or a worse model than a loss of 1.5 nats per byte?
#
# <details><summary>Answer</summary>
#
# A loss of 1.0 nats per byte means a better model than a loss of 1.5 nats per byte. The loss is the mean of $-\ln p$, where $p$ is the probability of the correct byte. A loss of 1.0 means that the correct byte has a typical probability of $e^{-1.0} \approx 0.37$. With a loss of 1.5, this probability is $e^{-1.5} \approx 0.22$.
#
# </details>
#
# ## Try
#
# 1. Train the adapter for 5 steps, and then train a new adapter for 300 steps. Compare the three lines that the model writes after each training.
#
# <details><summary>Hint</summary>
#
# In the cell under "A first adapter", change the number 60 in both places: `steps` and the first argument of `WarmupCosine`. Then run the cell again. The cell loads the model tiny again, so nothing of the old adapter is left.
#
# </details>
#
# <details><summary>Answer</summary>
#
# After 5 training steps, the model still continues the three lines in English. The learning rate is small in the first steps (the warm-up), so the adapter has hardly changed. After 300 steps the lines are Python code, but this code is hardly better
# than the code after 60 steps. The reason is that the model tiny is very small.
#
# </details>
#
# 2. Set `temperature` to 0.1 and to 2.0 in the cell with the longer text. How does each temperature change the text?
#
# <details><summary>Hint</summary>
#
# The probabilities are proportional to $e^{z / \text{temperature}}$ for the logits $z$. Which bytes become more likely if the temperature is small?
#
# </details>
#
# <details><summary>Answer</summary>
#
# At temperature 0.1 the most likely byte is drawn almost always. The text repeats itself and has many spaces in a row. At temperature 2.0 the eight bytes have almost equal probabilities, and many words of the text are
# neither English nor Python.
#
# </details>
#
# Continue with [The fine-tuning problem](01_the_fine_tuning_problem.ipynb).
