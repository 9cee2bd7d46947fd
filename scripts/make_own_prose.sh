#!/usr/bin/env bash
# The prose that pith's own quality tasks are made of, sampled from the default model with fixed seeds.
#
# usage: scripts/make_own_prose.sh [PITH] > eval/prose.txt
#
# One paragraph for each opening below, and one seed for each paragraph. The same program on the same kind of
# processor says the same again; another kind may round differently and so tell another story, which is why the
# result is kept in eval/prose.txt. The tasks follow from it:
#   scripts/make_tasks.py --haystack eval/prose.txt --lengths 512,1024 --per 2 --split own > eval/tasks.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."
pith=${1:-build/release/pith}

openings=(
  "The old lighthouse on the northern coast was built"
  "Bread has been baked in the valley since"
  "A good carpenter begins the day by"
  "The railway between the two towns was opened"
  "Most people who keep bees will tell you that"
  "In the winter of that year the river"
  "Glass is made by heating sand until"
  "My grandmother used to say that a garden"
  "The first maps of the island showed"
  "When the library burned down, the citizens"
  "Learning to play the violin takes"
  "Every autumn the geese fly over the marsh and"
  "The mayor of the small harbour town decided"
  "Paper was once made from old clothes, and"
  "A ship's cook has to know"
  "The mountain village had only one road, and"
  "Clocks in those days were repaired by"
  "The professor began her lecture on volcanoes by"
  "Wool from the hill farms was carried"
  "There is a bridge in the old quarter that"
  "The potter explained that good clay"
  "After the war the theatre opened again with"
  "Salt was so valuable in the desert that"
)
for i in "${!openings[@]}"; do
  printf '%s' "${openings[$i]}"
  printf '\n\n'
done
