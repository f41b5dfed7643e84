/**
 * The strict reading of a signed Nostr event (NIP-01).
 *
 * `src/identity/event.rs` accepts and refuses exactly the same events.
 */

import { schnorr } from "@noble/curves/secp256k1.js";
import { bytesToHex, hexToBytes } from "@noble/curves/utils.js";

/** The latest time that an event may claim: the end of the year 9999. */
const LATEST_TIME = 253_402_300_799;

/** An event as it is written. */
export interface SignedEvent {
  readonly id: string;
  readonly pubkey: string;
  readonly created_at: number;
  readonly kind: number;
  readonly tags: readonly (readonly string[])[];
  readonly content: string;
  readonly sig: string;
}

/** Reads an event from JSON and checks its shape, not yet its signature. */
export function parseEvent(json: Uint8Array): SignedEvent | undefined {
  const event = parseObject(json) as unknown as SignedEvent | undefined;
  const wellFormed = event !== undefined &&
    isLowerHex(event.id, 64) &&
    isLowerHex(event.pubkey, 64) &&
    isLowerHex(event.sig, 128) &&
    isWhole(event.created_at, LATEST_TIME) &&
    isWhole(event.kind, 65_535) &&
    isText(event.content) &&
    Array.isArray(event.tags) &&
    event.tags.every((tag) => Array.isArray(tag) && tag.length > 0 && tag.every(isText));
  return wellFormed ? event : undefined;
}

/** Tells whether the id is the hash of the fields and the signature is the named key's. */
export async function isGenuine(event: SignedEvent): Promise<boolean> {
  const canonical = JSON.stringify([
    0,
    event.pubkey,
    event.created_at,
    event.kind,
    event.tags,
    event.content,
  ]);
  const id = await sha256Hex(new TextEncoder().encode(canonical));
  if (id !== event.id) {
    return false;
  }
  try {
    return schnorr.verify(hexToBytes(event.sig), hexToBytes(event.id), hexToBytes(event.pubkey));
  } catch {
    // What is no point of the curve signs nothing.
    return false;
  }
}

/** Returns the values of all tags of a name; a tag without a value counts as an empty one. */
export function tagValues(event: SignedEvent, name: string): string[] {
  return event.tags.filter((tag) => tag[0] === name).map((tag) => tag[1] ?? "");
}

/** Reads a JSON object; anything else is `undefined`. */
export function parseObject(json: Uint8Array): Record<string, unknown> | undefined {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(json);
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Returns the SHA-256 of some bytes, as lower-case hex. */
export async function sha256Hex(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return bytesToHex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}

/** Tells whether a value is text that can be written as UTF-8. */
export function isText(value: unknown): value is string {
  return typeof value === "string" && value.isWellFormed();
}

function isLowerHex(value: unknown, length: number): boolean {
  return typeof value === "string" && value.length === length && /^[0-9a-f]*$/.test(value);
}

function isWhole(value: unknown, largest: number): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= largest;
}
