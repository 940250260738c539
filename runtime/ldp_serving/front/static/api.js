/** The server's API, as a browser asks it. Addresses are relative, so that a proxy may serve the page under a prefix. */

/** An error in the server's own words; `retry` is the number of seconds after which another try may succeed. */
export class ApiError extends Error {
  constructor(message, code = '', retry = null) {
    super(message);
    this.code = code;
    this.retry = retry;
  }
}

/** What the page must know before it has a key: {version, needs_key, loaded}. */
export async function server() {
  return (await ask('page/server.json')).json();
}

/** The models of the server, each with its sizes, policies and classes. */
export async function models(key) {
  return (await (await ask('v1/models', key)).json()).data;
}

/** Events of one picture, until it is complete. `signal` ends the request, which cancels it at the server. */
export async function* draw(request, key, signal) {
  const body = { ...request, stream: true, stream_scales: true, partial_images: 3, return_trace: true };
  const answer = await ask('v1/images/generations', key, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    signal,
  });
  try {
    for await (const data of events(answer.body)) {
      if (data === '[DONE]') return;
      const event = JSON.parse(data);
      if (event.error) throw told(event.error);
      yield event;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
  }
  throw new ApiError('the connection broke before the picture was complete');
}

/** Data of server-sent events, one after the other. */
async function* events(stream) {
  const [reader, decoder] = [stream.getReader(), new TextDecoder()];
  let text = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (text + decoder.decode(value, { stream: true })).split('\n\n');
      text = parts.pop();
      for (const part of parts) {
        const lines = part.split('\n').filter((line) => line.startsWith('data: '));
        yield lines.map((line) => line.slice('data: '.length)).join('\n');
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function ask(address, key = '', options = {}) {
  if (/[^ -~]/.test(key)) throw new ApiError('incorrect API key: it holds letters that no header can');
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(address, { credentials: 'omit', cache: 'no-store', ...options, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('the server cannot be reached');
  }
  if (answer.ok) return answer;
  const { error = {} } = await answer.json().catch(() => ({}));
  throw told(error, answer);
}

function told(error, answer = null) {
  const after = Number(answer?.headers.get('retry-after'));
  return new ApiError(error.message ?? `the server answered ${answer?.status}`, error.code ?? '', after || null);
}
