"""Clients of other makers, which launch/environment.sh installs, end to end."""

import json
import os
import pathlib
import shutil
import subprocess

import jsonschema
import pytest

_FOLDER = (
  pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache'))
  / 'craft-clients'
)
_SCHEMA = {
  'type': 'object',
  'properties': {
    'name': {'type': 'string', 'maxLength': 8},
    'age': {'type': 'integer', 'minimum': 0, 'maximum': 120},
  },
  'required': ['name', 'age'],
  'additionalProperties': False,
}
_PROGRAM = """
const [url, name, schema] = process.argv.slice(2)
const OpenAI = require('openai')
const {generateObject, generateText, streamText, jsonSchema} = require('ai')
const {createOpenAICompatible} = require('@ai-sdk/openai-compatible')

async function openai() {
  const client = new OpenAI(
    {baseURL: url + '/v1', apiKey: 'none', maxRetries: 0})
  const asked = {
    model: name, messages: [{role: 'user', content: '12 squared'}],
    max_tokens: 60, seed: 3,
  }
  const whole = await client.chat.completions.create(asked)
  const again = await client.chat.completions.create(
    {...asked, messages: [...asked.messages, whole.choices[0].message]})
  let text = '', usage = null
  const options = {stream: true, stream_options: {include_usage: true}}
  for await (const event of await client.chat.completions.create(
    {...asked, ...options})) {
    text += event.choices[0]?.delta?.content ?? ''
    usage = event.usage ?? usage
  }
  const form = {type: 'json_schema', json_schema: {
    name: 'a', strict: true, schema: JSON.parse(schema)}}
  const object = await client.chat.completions.create(
    {...asked, response_format: form})
  let refused = null
  try {
    await client.embeddings.create({model: name, input: 'a'})
  } catch (error) {
    refused = [error.status, error.message]
  }
  return {
    whole: whole.choices[0].message.content, wholeUsage: whole.usage,
    text, usage, again: again.object, refused,
    object: JSON.parse(object.choices[0].message.content),
  }
}

async function vercel() {
  const asked = {
    prompt: '12 squared', maxOutputTokens: 60, seed: 3, maxRetries: 0}
  const of = strict => createOpenAICompatible({
    name: 'craft', baseURL: url + '/v1', includeUsage: true,
    supportsStructuredOutputs: strict})(name)
  const whole = await generateText({...asked, model: of(true)})
  const stream = streamText({...asked, model: of(true)})
  let text = ''
  for await (const part of stream.textStream) text += part
  const {object} = await generateObject(
    {...asked, model: of(true), schema: jsonSchema(JSON.parse(schema))})
  const free = await generateObject(
    {...asked, model: of(false), output: 'no-schema'})
  return {
    whole: whole.text, wholeUsage: whole.usage.totalTokens,
    text, usage: (await stream.usage).totalTokens, object, free: free.object,
  }
}

({openai, vercel})[process.argv[5]]().then(
  found => console.log('FOUND ' + JSON.stringify(found)))
"""


@pytest.mark.slow
@pytest.mark.parametrize('client', ['openai', 'vercel'])
def test_a_client_for_node(server, tmp_path, client):
  node = shutil.which('node')
  if not node or not (_FOLDER / 'craft-installed').exists():
    pytest.skip('no clients for Node: launch/test.sh --all installs them')
  program = tmp_path / 'program.cjs'
  program.write_text(_PROGRAM)
  done = subprocess.run(
    [node, program, server.url, server.name, json.dumps(_SCHEMA), client],
    env=os.environ | {'NODE_PATH': str(_FOLDER / 'node_modules')},
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  lines = [x for x in done.stdout.split('\n') if x.startswith('FOUND ')]
  assert done.returncode == 0 and lines, done.stdout
  found = json.loads(lines[0].removeprefix('FOUND '))
  assert found['text'] == found['whole'] != ''
  assert found['usage'] == found['wholeUsage']
  jsonschema.validate(found['object'], _SCHEMA)
  if client == 'openai':
    status, says = found['refused']
    assert status == 404 and '/v1/completions' in says
    assert found['again'] == 'chat.completion'
  else:
    assert isinstance(found['free'], dict)
