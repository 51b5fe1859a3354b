"""What `transformers` renders with the templates of this folder: expected.json, which tests/chat.rs compares with.

usage: make_expected.py      (transformers 5, jinja2)
"""
import json, os, sys, datetime
from unittest import mock
import transformers.utils.chat_template_utils as chat_template_utils
from jinja2.exceptions import TemplateError

HERE = os.path.dirname(os.path.abspath(__file__))
CHATS = {
    'one': [{'role': 'user', 'content': 'Lamp on?'}, {'role': 'assistant', 'content': 'Yes <&> "now"'}],
    'two': [
        {'role': 'system', 'content': 'Answer as a house.'},
        {'role': 'user', 'content': 'a'},
        {'role': 'assistant', 'content': 'a'},
        {'role': 'user', 'content': 'assistant'},
        {'role': 'assistant', 'content': 'ü, b'},
    ],
    'thinking': [
        {'role': 'user', 'content': 'a'},
        {'role': 'assistant', 'content': '<think>\nfirst\n</think>\n\nb'},
        {'role': 'user', 'content': 'c'},
        {'role': 'assistant', 'content': '<think>\nthen\n</think>\n\nd'},
    ],
}
TOOLS = [{'type': 'function', 'function': {'name': 'lamp', 'description': 'Light & "dark"', 'parameters': {'type': 'object', 'properties': {'on': {'type': 'boolean'}}}}}]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 1, 12, 0, 0)


cases = []
for template in sorted(name for name in os.listdir(HERE) if name.endswith('.jinja')):
    text = open(os.path.join(HERE, template), encoding='utf-8').read()
    for chat, messages in CHATS.items():
        for tools in [None, TOOLS] if template == 'marks.jinja' and chat == 'one' else [None]:
            for prompt in [False, True]:
                case = {'template': template, 'messages': messages, 'tools': tools, 'add_generation_prompt': prompt}
                try:
                    with mock.patch.object(chat_template_utils, 'datetime', Clock):
                        rendered, spans = chat_template_utils.render_jinja_template(
                            conversations=[messages], tools=tools, chat_template=text, add_generation_prompt=prompt,
                            return_assistant_tokens_mask='generation' in text, bos_token='<s>', eos_token='</s>')
                    case['text'] = rendered[0]
                    case['generated'] = [list(span) for span in spans[0]] if spans and spans[0] else []
                except TemplateError as error:
                    case['refused'] = str(error)
                cases.append(case)
json.dump(cases, open(os.path.join(HERE, 'expected.json'), 'w', encoding='utf-8'), ensure_ascii=False, indent=1)
print(len(cases), 'cases')
