#!/bin/sh
# lm-eval 0.4.13, tasks xcopa_th and xcopa_tr: the text that is scored is not the text of the data set. Every premise
# loses its last character, meant to be the full stop; Thai writes none, so a letter goes. The first letter of every
# answer is made small without regard to the language: of Turkish "I" comes "i" instead of "ı", and "İ" becomes two
# characters. Nothing is said; accuracies in these two languages are of other words than those in the file.
#
# Seen (premises and answers are ours, in the data set's form):
#   th  ฝนตก        ->  ฝนต เพราะ       the verb has lost its last letter
#   tr  Irmak taştı ->  irmak taştı     right would be ırmak
#   tr  İnek kaçtı  ->  i̇nek kaçtı      11 characters of 10
#
# Takes two minutes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet lm-eval==0.4.13
"$folder/env/bin/python" - <<'PYTHON'
from lm_eval.tasks.xcopa.utils import doc_to_choice, doc_to_text_th

thai = {"premise": "ฝนตก", "question": "cause"}
text = doc_to_text_th(thai)
river, cow = doc_to_choice({"choice1": "Irmak taştı", "choice2": "İnek kaçtı"})
print(text, river, f"{cow}: {len(cow)} characters of {len('İnek kaçtı')}", sep="\n")
assert text == "ฝนต เพราะ" and river == "irmak taştı" and len(cow) == 11, "this has changed"
PYTHON
