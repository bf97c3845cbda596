# LeCarnet's four criteria (https://github.com/MaxLSB/LeCarnet), for stories in French or any other language.
#     python evaluate.py config/evaluate_lecarnet.py --samples=out/french/samples.jsonl --provider=mistral

criteria = {
    'grammar': 'spelling, agreement, tenses, sentences that are whole',
    'creativity': 'ideas, characters and turns that one has not read a hundred times',
    'coherence': 'the same characters and things from the opening to the end, each sentence following from the others',
    'logic': 'what happens has causes and consequences that a child would accept',
}
scale = [1, 10]

template = '''
This story for young children was written by a small language model, which was given its opening:
{opening}
The model went on:
{continuation}
Grade what the model wrote, as a strict teacher of its language would, from {low} to {high} on each of these:

{criteria}

Answer with JSON only, numbers without a comment: {"grammar": 0, "creativity": 0, "coherence": 0, "logic": 0}
'''
