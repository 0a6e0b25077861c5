'use strict';

const assert = require('node:assert/strict');
const { after, before, test } = require('node:test');

const { createServer } = require('../server.js');

let server;
let base;

before(async () => {
  server = createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  base = `http://127.0.0.1:${server.address().port}`;
});

after(() => new Promise((resolve) => server.close(resolve)));

test('GET / greets', async () => {
  const response = await fetch(`${base}/`);
  assert.equal(response.status, 200);
  assert.match(await response.text(), /Hello from example-repo/);
});

test('a query string does not hide a route', async () => {
  const response = await fetch(`${base}/?name=value`);
  assert.equal(response.status, 200);
});

test('an unknown path is not found', async () => {
  const response = await fetch(`${base}/no-such-page`);
  assert.equal(response.status, 404);
});

test('another method is not a GET', async () => {
  const response = await fetch(`${base}/`, { method: 'POST' });
  assert.equal(response.status, 404);
});
