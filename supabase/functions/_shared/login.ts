/**
 * Everything about a login that needs no database: the event is genuine, fresh, and meant for this
 * control plane and this body (NIP-98), and the body says who signs in.
 *
 * `src/identity/login_event.rs` and `check_login` in `src/stack/auth.rs` are the same for the
 * embedded control plane; `tests/vectors/login.json` holds both to the same answers, words
 * included.
 */

import { badBody, longBody, Refusal } from "./answer.ts";
import {
  isGenuine,
  isText,
  parseEvent,
  parseObject,
  sha256Hex,
  SignedEvent,
  tagValues,
} from "./event.ts";

/** The longest body of a login, in bytes. */
export const LOGIN_BODY_LIMIT = 16 * 1024;

/** How far the time of an event may be from the server's, in seconds. */
const LOGIN_WINDOW_SECS = 60;

/** The kind of a NIP-98 event. */
const LOGIN_EVENT_KIND = 27_235;

/** The longest accepted value of the header `Authorization`, in bytes. */
const HEADER_LIMIT = 8 * 1024;

/** A login whose event holds. */
export interface Login {
  /** The event's id, to be consumed once. */
  readonly eventId: string;
  /** The key that signed, in hex. */
  readonly publicKey: string;
  /** When the event says that it was made, in seconds since 1970. */
  readonly createdAt: number;
  /** What the body asks for. */
  readonly request: LoginRequest;
}

/** The body of a login. What the words in it mean is decided in SQL. */
export interface LoginRequest {
  readonly kind: "user" | "node";
  readonly role?: string | null;
  readonly enrolment?: string | null;
  readonly name?: string | null;
}

/** Where and when a login arrives. */
export interface Arrival {
  /** The full URLs of this login; `Host` and forwarded headers play no part. */
  readonly urls: readonly string[];
  /** The method of the request. */
  readonly method: string;
  /** The server's clock, in seconds since 1970. */
  readonly now: number;
}

/** Checks a login; throws the {@link Refusal} of its first fault. */
export async function checkLogin(
  authorization: string | null,
  body: Uint8Array<ArrayBuffer>,
  arrival: Arrival,
): Promise<Login> {
  if (body.length > LOGIN_BODY_LIMIT) {
    throw longBody();
  }
  const event = readHeader(authorization);
  const url = onlyTag(event, "u");
  const method = onlyTag(event, "method");
  const payload = onlyTag(event, "payload");

  if (!await isGenuine(event)) {
    throw refuse(
      "bad_signature",
      "The login event is not signed by the key that it names.",
      "Sign the event with the secret key of its pubkey.",
    );
  }
  if (url === undefined || !arrival.urls.includes(url)) {
    throw refuse(
      "wrong_url",
      `The login event is for ${url || "nothing"}, but this control plane's login is at ${
        arrival.urls.join(" or ")
      }.`,
      "Use the control plane's public URL; the operator sets which those are.",
    );
  }
  if (method !== arrival.method) {
    throw refuse(
      "wrong_method",
      `The login event is for the method ${
        method || "nothing"
      }, but the request is ${arrival.method}.`,
      "Sign the event for the method POST.",
    );
  }
  const payloadHint = "Add a payload tag with the hex SHA-256 of exactly the bytes of the body.";
  if (payload === undefined) {
    throw refuse(
      "missing_payload",
      "The login event does not cover the body: it has no payload tag.",
      payloadHint,
    );
  }
  if (payload !== await sha256Hex(body)) {
    throw refuse(
      "payload_mismatch",
      "The body is not the one that the login event was signed for.",
      payloadHint,
    );
  }
  const { created_at: made } = event;
  const difference = Math.abs(made - arrival.now);
  if (difference > LOGIN_WINDOW_SECS) {
    const direction = made < arrival.now ? "behind" : "ahead of";
    throw refuse(
      "clock_skew",
      `Your clock is ${difference} seconds ${direction} the control plane's: the login event was made at ${
        utc(made)
      }, and the control plane's clock says ${utc(arrival.now)}.`,
      "Set your machine's clock, for example with timedatectl set-ntp true, and try again.",
    );
  }
  return {
    eventId: event.id,
    publicKey: event.pubkey,
    createdAt: made,
    request: readRequest(body),
  };
}

/** Reads the event of the header `Authorization`. */
function readHeader(authorization: string | null): SignedEvent {
  if (authorization === null) {
    throw badEvent("the Authorization header is missing");
  }
  if (authorization.length > HEADER_LIMIT) {
    throw badEvent("it is longer than 8 KB");
  }
  const space = authorization.indexOf(" ");
  const scheme = space < 0 ? authorization : authorization.slice(0, space);
  if (scheme.toLowerCase() !== "nostr") {
    throw badEvent("the Authorization header's scheme is not Nostr");
  }
  const json = decodeBase64(space < 0 ? "" : authorization.slice(space + 1));
  if (json === undefined) {
    throw badEvent("it is not base64");
  }
  const event = parseEvent(json);
  if (event === undefined) {
    throw badEvent("it is not a Nostr event");
  }
  if (event.kind !== LOGIN_EVENT_KIND) {
    throw badEvent("its kind is not 27235");
  }
  return event;
}

/** Decodes the one canonical form of base64. */
function decodeBase64(text: string): Uint8Array | undefined {
  try {
    const binary = atob(text);
    // atob() also takes white space, missing padding and bits to spare.
    return btoa(binary) === text
      ? Uint8Array.from(binary, (char) => char.charCodeAt(0))
      : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Returns the value of a tag that may appear once: with two of them, two readers could believe
 * different ones.
 */
function onlyTag(event: SignedEvent, name: string): string | undefined {
  const values = tagValues(event, name);
  if (values.length > 1) {
    throw badEvent(`it has more than one ${name} tag`);
  }
  return values[0];
}

/** Reads the body. */
function readRequest(body: Uint8Array): LoginRequest {
  const fields = parseObject(body);
  const known = ["kind", "role", "enrolment", "name"];
  if (fields === undefined || Object.keys(fields).some((field) => !known.includes(field))) {
    throw badBody();
  }
  const { kind, role, enrolment, name } = fields;
  const isOptionalText = (value: unknown) => value === undefined || value === null || isText(value);
  if ((kind !== "user" && kind !== "node") || ![role, enrolment, name].every(isOptionalText)) {
    throw badBody();
  }
  return fields as unknown as LoginRequest;
}

function badEvent(reason: string): Refusal {
  return refuse(
    "bad_event",
    `The login event cannot be used: ${reason}.`,
    "Send the header Authorization: Nostr followed by the base64 of a signed event of kind 27235 with one tag each of u, method and payload.",
  );
}

function refuse(code: string, message: string, hint: string): Refusal {
  return new Refusal(401, code, message, hint);
}

/** Writes seconds since 1970 as UTC, like `2026-01-31T23:59:59Z`. */
function utc(seconds: number): string {
  return new Date(seconds * 1000).toISOString().replace(".000Z", "Z");
}
