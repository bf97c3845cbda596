# Hindi stories from a chat API, as in the Regional TinyStories paper (https://arxiv.org/abs/2504.07989):
#     python generate_data.py config/generate_hindi.py --provider=mistral --total=20000 --out=data/hindi/chat.jsonl
# The prompt is plain text: edit it. Words in braces are slots: {noun}, {verb}, {adjective} and {feature} differ for
# each story, {language} is the folder's name, {theme} one of the themes, {level} the text of this complexity.

language = 'hindi'
total = 1_000_000
complexity = '2+'  # 1, 2, 2+, 3, 4 or 5; the paper uses 2+

template = '''
Write a short story in {language}, in its own script, for a child of five to seven. Use only words that such a child knows.

The story uses the verb "{verb}", the noun "{noun}" and the adjective "{adjective}", in whatever form the grammar asks for, and it
contains this: {feature}.
{level}
Begin in your own way, not with the usual opening of a fairy tale. Write nothing but the story itself: no title, no moral spelled out, no
closing line such as "The End", no word to the reader. Put what the characters say between “ and ”, never between straight quotation marks.
Answer with JSON only: {"story": "the whole story, in {language}"}
'''

_words = 'It is 150 to 250 words long.'
_length = _words[:-1] + ', in three to five paragraphs, with a clear beginning, middle and end.'
_natural = _length + ' Weave what it contains into the events, so that the reader finds it in what the characters do and feels, and never name it.'
_dialogue = _natural + ' The characters talk with one another, in two to four short lines of dialogue.'
_theme = _dialogue + ' At its heart is this: {theme}.'
levels = {
    '1': _words,
    '2': _length,
    '2+': _natural,
    '3': _dialogue,
    '4': _theme,
    '5': _theme + ' Let rain, wind, trees, rivers, stars or animals have a part in it, and give it the warmth and rhythm of well-loved '
                  "children's books, such as {books}, without borrowing their characters.",
}
themes = ['friendship', 'courage in small things', 'telling the truth', 'sharing', 'patience', 'curiosity', 'being kind to animals', 'helping at home',
          'trying again', 'saying sorry', 'being a little different', 'missing someone', 'a first time', 'looking after nature',
          'working together', 'gratitude']
books = 'the Panchatantra, the tales of Tenali Raman and those of Akbar and Birbal'
