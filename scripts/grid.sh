# Sourced by the generators: the papers' grids (arXiv 2402.18726; instance_: arXiv 2307.00310), once.
# Flags replace their values.
# shellcheck shell=sh disable=SC2034
arch=resnet18
link2_datasets='cifar10 cifar100'
link2_epsilons='1 5 10 15 20 25 30 35 40 45 50 55 60 65 70 75 80 85 90 95 100'
link2_seeds='10655 11005 12177 14838 20392 21497 25716 41616 42601 54400'
link3_datasets=cifar100
link3_epsilons='1 10 20 30 40 50'
link3_seeds='0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39'
instance_epsilons=10
instance_seeds='1 2 3 4 5 6 7 8 9 10'
