# LeCarnet's grading (https://github.com/MaxLSB/LeCarnet): an assessment first, then four grades from 0 to 10. For
# stories in French or any other language.
#     python evaluate.py config/evaluate_lecarnet.py --samples=out/french/samples.jsonl --provider=mistral

temperature = 0.5  # LeCarnet's

criteria = {
    'grammar': 'spelling, agreement, tenses, complete sentences',
    'creativity': 'ideas, characters and turns of its own',
    'coherence': 'the same characters and things from the opening to the end, each sentence follows from the others',
    'logic': 'what happens has causes and consequences that a child would accept',
}
scale = [0, 10]

template = '''
A small language model wrote this story for young children. It was given the opening:
{opening}
It continued:
{continuation}
Assess the continuation, as a strict teacher of its language. Say in two or three sentences what is good and what is
wrong. Then grade it on each of these criteria, where {low} means useless and {high} means without a fault:

{criteria}

Answer with JSON only: {"notes": "your assessment", "grammar": 0, "creativity": 0, "coherence": 0, "logic": 0}
'''
