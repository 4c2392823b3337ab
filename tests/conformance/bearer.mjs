// Loaded with `node --import`: sends MCP_BEARER with every request to MCP_ORIGIN, because the suite has no option
// for a header. Node announces each request before its head is written, those of `http` and those of `undici`
// (which is also `fetch`), so nothing has to be wrapped.
import { subscribe } from 'node:diagnostics_channel';

const authorization = `Bearer ${process.env.MCP_BEARER}`;
const target = new URL(process.env.MCP_ORIGIN);

subscribe('undici:request:create', ({ request }) => {
  if (new URL(request.origin).origin === target.origin) {
    request.addHeader('authorization', authorization);
  }
});

subscribe('http.client.request.created', ({ request }) => {
  if (request.protocol === target.protocol && request.host === target.hostname) {
    request.setHeader('authorization', authorization);
  }
});
