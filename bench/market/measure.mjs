// What the drivers of other queues share: their arguments, which are environment
// variables because one is a secret, and the measuring of a rate.

export function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set.`);
  return value;
}

export function number(name) {
  return Number(required(name));
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Counts for the measured time after the time for warming up.
export async function measure(count) {
  await sleep(number("BENCH_WARM_UP_SECS"));
  const [first, start] = [count(), performance.now()];
  await sleep(number("BENCH_SECS"));
  return { jobs: count() - first, seconds: (performance.now() - start) / 1000 };
}
