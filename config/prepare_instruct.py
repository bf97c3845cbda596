# Stories with the fields of TinyStories-Instruct in front of them (Eldan and Li 2023,
# https://arxiv.org/abs/2305.07759): words and features of the story, and its summary. The source has the columns
# words, features, summary and story, none of them empty; words and features can be lists. train.py needs no config
# of its own.
#     python prepare.py config/prepare_instruct.py --source=instruct.jsonl
#     python train.py config/train_tinystories_15m.py --dataset=instruct --out_dir=out/instruct
#     python sample.py --out_dir=out/instruct \
#         --start=$'Words: oak, quit\nFeatures: Dialogue\nSummary: Ben plants a tree.\nStory: Ben'
# TinyStories-Instruct-train.txt itself has such fields, in any order, in the text of its stories. It needs no template:
# python prepare.py --source=TinyStories-Instruct-train.txt --dataset=instruct

dataset = 'instruct'
text_column = 'story'
story_template = 'Words: {words}\nFeatures: {features}\nSummary: {summary}\nStory: {text}'
plain_fraction = 0.1  # these stories are without fields, so that the model also continues a plain opening
