'use strict';

const http = require('node:http');

// Each route is a function of the request, so that a new endpoint is one line here and one test beside the others.
const routes = {
  'GET /': (request, response) => {
    response.writeHead(200, { 'content-type': 'text/plain; charset=utf-8' });
    response.end('Hello from example-repo\n');
  },
};

function createServer() {
  return http.createServer((request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost');
    const route = routes[`${request.method} ${pathname}`];
    if (route) {
      route(request, response);
      return;
    }
    response.writeHead(404, { 'content-type': 'text/plain; charset=utf-8' });
    response.end('Not found\n');
  });
}

if (require.main === module) {
  const port = Number(process.env.PORT ?? 8080);
  createServer().listen(port, () => console.log(`listening on port ${port}`));
}

module.exports = { createServer, routes };
