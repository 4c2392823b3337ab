// Leads the official TypeScript client to an MCP server and has it call tools.
//
// node client.mjs HOME '{"sdk", "era", "url", "issuer", "grant", "clientId", "secret" | "key", "calls", ...}'
//
// HOME is where the packages are. What it prints is one JSON object a line: {"open": url} asks for a person's consent at
// that URL, and reads the callback URL from the next line of the standard input; {"done": {"results", "fetches"}} is
// the end.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const options = JSON.parse(process.argv[3]);
const load = createRequire(process.argv[2] + "/");
const sdk = options.sdk === 1
  ? {
      ...load("@modelcontextprotocol/sdk/client/index.js"),
      ...load("@modelcontextprotocol/sdk/client/streamableHttp.js"),
      ...load("@modelcontextprotocol/sdk/client/auth-extensions.js"),
    }
  : load("@modelcontextprotocol/client");

const fetches = [];
async function fetching(url, init) {
  const response = await fetch(url, init);
  const headers = new Headers(init?.headers);
  fetches.push({
    method: init?.method ?? "GET",
    url: String(url),
    status: response.status,
    body: init?.body === undefined ? null : String(init.body),
    authorization: headers.get("authorization")?.split(" ")[0] ?? null,
  });
  return response;
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

class Person {
  get redirectUrl() {
    return options.callback;
  }
  get clientMetadata() {
    return {
      client_name: "An agent",
      redirect_uris: [options.callback],
      grant_types: options.refresh ? ["authorization_code", "refresh_token"] : ["authorization_code"],
      response_types: ["code"],
      token_endpoint_auth_method: "none",
    };
  }
  state() {
    return (this.sent = crypto.randomUUID());
  }
  clientInformation() {
    return this.information;
  }
  saveClientInformation(information) {
    this.information = information;
  }
  tokens() {
    return this.saved;
  }
  saveTokens(tokens) {
    this.saved = tokens;
  }
  saveDiscoveryState(state) {
    this.discovered = state;
  }
  discoveryState() {
    return this.discovered;
  }
  saveCodeVerifier(verifier) {
    this.verifier = verifier;
  }
  codeVerifier() {
    return this.verifier;
  }
  async redirectToAuthorization(url) {
    say({ open: String(url) });
    this.callback = new URL((await lines.next()).value).searchParams;
    if (this.callback.get("state") !== this.sent) throw new Error("the state is not what was sent");
  }
}

function provider() {
  const { clientId, secret, key, issuer, scope } = options;
  switch (options.grant) {
    case "code":
      return new Person();
    case "secret":
      return new sdk.ClientCredentialsProvider({ clientId, clientSecret: secret, expectedIssuer: issuer, scope });
    case "assertion":
      return new sdk.PrivateKeyJwtProvider({ clientId, privateKey: key, algorithm: "ES256", expectedIssuer: issuer });
  }
}

const authProvider = provider();
let client, transport;

async function connect() {
  transport = new sdk.StreamableHTTPClientTransport(new URL(options.url), { authProvider, fetch: fetching });
  const mode = options.era === "modern" ? { versionNegotiation: { mode: "auto" } } : {};
  client = new sdk.Client({ name: "tests", version: "1" }, mode);
  await client.connect(transport);
}

// What an application has to do with a code flow: after UnauthorizedError finish it, and try again.
async function authorized(attempt) {
  try {
    return await attempt();
  } catch (error) {
    if (!authProvider.callback) throw error;
    const callback = authProvider.callback;
    delete authProvider.callback;
    if (options.sdk === 1) await transport.finishAuth(callback.get("code"));
    else await transport.finishAuth(callback);
    return await attempt();
  }
}

const results = [];
try {
  await authorized(connect);
  for (const [name, text] of options.calls) {
    try {
      const result = await authorized(() => client.callTool({ name, arguments: { text } }));
      results.push(result.content[0].text);
    } catch (error) {
      results.push({ error: error.constructor.name, message: error.message, code: error.code ?? null });
    }
  }
} catch (error) {
  results.push({ error: error.constructor.name, message: error.message, stack: error.stack });
}
say({ done: { results, fetches } });
process.exit(0);
