/**
 * Login as Supabase runs it: the vectors that the embedded control plane answers as well
 * (`tests/vectors/login.json`, made by `tests/it/control/login_vectors.rs`), the settings, and the parts of
 * the handlers that need no database. With a database they are tested by `tests/it/control/login.rs`.
 */

import { deepStrictEqual, ok, rejects } from "node:assert/strict";
import { decodeProtectedHeader, importJWK, type JWK, jwtVerify } from "jose";

import { handler as auth } from "../auth/handler.ts";
import { handler as info } from "../info/handler.ts";
import { Refusal } from "../_shared/answer.ts";
import { checkLogin } from "../_shared/login.ts";
import { publicUrls, publishableKey, serviceDatabase, signingKey } from "../_shared/settings.ts";
import { signToken, type TokenClaims } from "../_shared/token.ts";

interface Case {
  name: string;
  urls: string[];
  now: number;
  authorization: string | null;
  authorization_padding?: number;
  body: string;
  body_padding?: number;
  repeats?: string;
  accepted?: { event_id: string; public_key: string; created_at: number; request: unknown };
  refused?: { status: number; code: string; message: string; hint: string };
}

interface Token {
  alg: "HS256" | "ES256";
  secret: string;
  private_jwk: JWK;
  public_jwk: JWK;
  header: Record<string, unknown>;
  claims: TokenClaims;
  token: string;
}

const file = new URL("../../../tests/vectors/login.json", import.meta.url);
const vectors: { cases: Case[]; tokens: Token[] } = JSON.parse(await Deno.readTextFile(file));

for (const vector of vectors.cases) {
  Deno.test(`login: ${vector.name}`, async () => {
    const padding = "A".repeat(vector.authorization_padding ?? 0);
    const header = vector.authorization === null ? null : vector.authorization + padding;
    const body = new TextEncoder().encode(vector.body + " ".repeat(vector.body_padding ?? 0));
    const arrival = { urls: vector.urls, method: "POST", now: vector.now };
    if (vector.accepted) {
      const login = await checkLogin(header, body, arrival);
      const request = Object.fromEntries(
        Object.entries(login.request).filter(([, value]) => value !== null),
      );
      deepStrictEqual({
        event_id: login.eventId,
        public_key: login.publicKey,
        created_at: login.createdAt,
        request,
      }, vector.accepted);
    } else {
      await rejects(checkLogin(header, body, arrival), (refusal) => {
        ok(refusal instanceof Refusal);
        const { status, code, message, hint } = refusal;
        deepStrictEqual({ status, code, message, hint }, vector.refused);
        return true;
      });
    }
    if (vector.repeats) {
      // The check itself is pure: that an id is used up once is for SQL to see.
      const first = vectors.cases.find((other) => other.name === vector.repeats);
      deepStrictEqual(vector.accepted?.event_id, first?.accepted?.event_id);
    }
  });
}

for (const vector of vectors.tokens) {
  Deno.test(`token: ${vector.alg}`, async () => {
    const environment = (name: string) =>
      ({
        INFERNET_JWT_KEY: vector.private_jwk && JSON.stringify(vector.private_jwk),
        INFERNET_JWT_SECRET: vector.secret,
      })[name];
    const key = vector.alg === "HS256"
      ? new TextEncoder().encode(vector.secret)
      : await importJWK(vector.public_jwk, "ES256");
    const currentDate = new Date((vector.claims.iat + 60) * 1000);
    const signed = await signToken(signingKey(environment), vector.claims);
    for (const token of [vector.token, signed]) {
      const { payload } = await jwtVerify(token, key, { currentDate });
      deepStrictEqual(payload as unknown, vector.claims);
      deepStrictEqual(decodeProtectedHeader(token) as unknown, vector.header);
      const forged = `${token.slice(0, -4)}AAAA`;
      await rejects(jwtVerify(forged, key, { currentDate }));
    }
  });
}

/** An environment of these variables only. */
const environment = (values: Record<string, string>) => (name: string) => values[name];

/** Returns a port at which nobody listens. */
function closedPort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** All settings of a local Supabase, at whose URL nobody listens. */
const local = {
  SUPABASE_URL: `http://127.0.0.1:${closedPort()}`,
  SUPABASE_SERVICE_ROLE_KEY: "a.b.c",
  SUPABASE_ANON_KEY: "d.e.f",
  INFERNET_JWT_SECRET: "a-secret-with-more-than-thirty-two-characters",
  INFERNET_PUBLIC_URLS: "http://127.0.0.1:54321/, http://LOCALHOST:54321",
};

Deno.test("public URLs have one spelling", () => {
  deepStrictEqual(publicUrls(environment(local)), [
    "http://127.0.0.1:54321",
    "http://localhost:54321",
  ]);
  deepStrictEqual(publicUrls(environment({ SUPABASE_URL: "https://x.supabase.co" })), [
    "https://x.supabase.co",
  ]);
  deepStrictEqual(
    publicUrls(environment({
      SUPABASE_URL: "http://kong:8000",
      SUPABASE_PUBLIC_URL: "https://plane.example/below/",
    })),
    ["https://plane.example/below"],
  );
});

Deno.test("new keys come before older ones", () => {
  const both = environment({
    ...local,
    SUPABASE_SECRET_KEYS: '{"default":"sb_secret_x"}',
    SUPABASE_PUBLISHABLE_KEYS: '{"default":"sb_publishable_x"}',
  });
  deepStrictEqual(serviceDatabase(both).key, "sb_secret_x");
  deepStrictEqual(publishableKey(both), "sb_publishable_x");
  deepStrictEqual(serviceDatabase(environment(local)).key, "a.b.c");
  deepStrictEqual(publishableKey(environment(local)), "d.e.f");
});

Deno.test("a missing setting is the operator's affair, not the caller's", async () => {
  for (const missing of ["INFERNET_PUBLIC_URLS", "INFERNET_JWT_SECRET"] as const) {
    const { [missing]: _, ...rest } = local;
    const request = new Request("http://x/auth", { method: "POST", body: "{}" });
    const response = await auth(request, environment(rest));
    deepStrictEqual(response.status, 503);
    const answer = await response.json();
    deepStrictEqual(answer.code, "unavailable");
    ok(!JSON.stringify(answer).includes("INFERNET"));
  }
  const short = environment({ ...local, INFERNET_JWT_SECRET: "too short" });
  const request = new Request("http://x/auth", { method: "POST", body: "{}" });
  deepStrictEqual((await auth(request, short)).status, 503);
});

Deno.test("a database that does not answer", async () => {
  const response = await info(new Request("http://x/info"), environment(local));
  deepStrictEqual(response.status, 503);
  deepStrictEqual(response.headers.get("Retry-After"), "3");
  deepStrictEqual((await response.json()).code, "unavailable");
});

Deno.test("a body without end is not read to its end", async () => {
  const body = new ReadableStream({
    pull(controller) {
      controller.enqueue(new Uint8Array(4096));
    },
  });
  const request = new Request("http://x/auth", { method: "POST", body });
  const response = await auth(request, environment(local));
  deepStrictEqual(response.status, 400);
  deepStrictEqual((await response.json()).message, "The body of the login is longer than 16 KB.");
});

Deno.test("browsers may ask first, other methods are refused", async () => {
  for (const handler of [auth, info]) {
    const preflight = await handler(
      new Request("http://x/", { method: "OPTIONS" }),
      environment(local),
    );
    deepStrictEqual(preflight.status, 204);
    ok(preflight.headers.get("Access-Control-Allow-Headers")?.includes("authorization"));
    const wrong = await handler(new Request("http://x/", { method: "PUT" }), environment(local));
    deepStrictEqual(wrong.status, 405);
    deepStrictEqual((await wrong.json()).code, "bad_request");
  }
});

Deno.test("each function pins the imports that the tests ran with", async () => {
  const read = async (path: string) =>
    JSON.parse(await Deno.readTextFile(new URL(path, import.meta.url)));
  const pinned = (await read("../deno.json")).imports;
  for (const name of ["auth", "info"]) {
    for (
      const [specifier, target] of Object.entries((await read(`../${name}/deno.json`)).imports)
    ) {
      deepStrictEqual(pinned[specifier], target, `${name}: ${specifier}`);
    }
  }
  deepStrictEqual((await read("../auth/deno.lock")).npm, (await read("../deno.lock")).npm);
});
