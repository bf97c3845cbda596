# The grading of TinyStories (Eldan and Li 2023, https://arxiv.org/abs/2305.07759): *** marks where the model's text
# begins.
#     python evaluate.py config/evaluate_tinystories.py --samples=out/english/samples.jsonl --provider=openai

criteria = {
    'grammar': 'is what the model wrote correct',
    'creativity': 'does it bring ideas of its own',
    'consistency': 'does it fit the beginning and itself, and is a sentence that *** cuts in two completed sensibly',
    'age_group': 'how old would a person be who writes like that: A for 3 or younger, B for 4 to 5, C for 6 to 7, D for 8 to 9, E for 10 to 12, F for 13 to 16',
}
scale = [1, 10]
choices = {'age_group': {'A': 3, 'B': 4.5, 'C': 6.5, 'D': 8.5, 'E': 11, 'F': 14.5}}  # years

template = '''
A language model was given the beginning of a story, up to the mark ***, and wrote the rest:
{split_story}
Judge the part after *** in these respects:

{criteria}

First say in two or three sentences what you think of it, then grade: grammar, creativity and consistency by a number from {low} to {high}, the age group
by its letter. Answer with JSON only: {"notes": "…", "grammar": 0, "creativity": 0, "consistency": 0, "age_group": "A"}
'''
