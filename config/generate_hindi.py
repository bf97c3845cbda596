# Hindi stories from a chat API, in the manner of the Regional TinyStories paper (https://arxiv.org/abs/2504.07989):
#     python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --out=data/hindi/chat.jsonl
# The prompt is plain text: edit it. Words in braces are slots:
# - {noun}, {verb}, {adjective} and {feature} are a combination that no other story has
# - {hero}, {place} and {event} are random lines of the files named in `lists`, {theme} is one of the themes
# - {language} is the folder's name, {level} the text of this complexity

language = 'hindi'
total = 1_000_000
complexity = '2+'  # 1, 2, 2+, 3, 4 or 5; the paper uses 2+
min_words = 110  # the prompt asks for 120 to 300
max_words = 350
lists = {'hero': 'heroes.txt', 'place': 'places.txt', 'event': 'events.txt'}

template = '''
Write a short story in {language}, in its own script, for a child of five to seven.
Use only words that such a child knows. The story has 120 to 300 words.

It is about {hero}.
It takes place here: {place}.
This happens in it: {event}.
It uses the verb "{verb}", the noun "{noun}" and the adjective "{adjective}", in any form that the grammar needs.
It contains this: {feature}.
{level}
Begin in your own way, not with the usual opening of a fairy tale.
Write nothing but the story: no title, no moral, no closing line such as "The End", no word to the reader.
Put what the characters say between “ and ”, never between straight quotation marks.
Answer with JSON only: {"story": "the whole story, in {language}"}
'''

# The levels follow the paper's, with these differences:
# - All levels have one length. The paper's 2+ asks for 350 to 500 words, its other levels for 200 to 300.
# - Hero, place and event are new: without them, stories of one model resemble each other.
# - The paper's levels 4 and 5 name well-known children's books. Here only level 5 does.
_structure = 'It has three to five paragraphs, with a clear beginning, middle and end.'
_natural = _structure + ' What it contains shows in what the characters do and feel. The story never names it.'
_dialogue = _natural + ' The characters talk with one another in two to four short lines of dialogue.'
_theme = _dialogue + ' Its theme is {theme}.'
_nature = _theme + ' Rain, wind, trees, rivers, stars or animals have a part in it.'
levels = {
    '1': '',
    '2': _structure,
    '2+': _natural,
    '3': _dialogue,
    '4': _theme,
    '5': _nature + " It has the warmth and rhythm of well-loved children's books, such as {books}, but none of their characters.",
}
themes = ['friendship', 'courage in small things', 'telling the truth', 'sharing', 'patience', 'curiosity',
          'being kind to animals', 'helping at home', 'trying again', 'saying sorry', 'being a little different',
          'missing someone', 'a first time', 'looking after nature', 'working together', 'gratitude']
books = 'the Panchatantra, the tales of Tenali Raman and those of Akbar and Birbal'
