// Lanes that add jobs to graphile-worker while as many workers do them: how many
// a second are added and done. Prints one line of JSON.

import { createRequire } from "node:module";
import { measure, number, required } from "./measure.mjs";

const require = createRequire(required("BENCH_MODULES") + "/");
const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const { Pool } = require("pg");

const lanes = number("BENCH_LANES");
// Enough that no worker waits for a job, few enough that none waits for long.
const backlog = 25 * lanes;

const pool = (size) => new Pool({ connectionString: required("BENCH_DATABASE_URL"), max: size });
const logger = new Logger(() => () => {});
const adding = pool(lanes);
const utils = await makeWorkerUtils({ pgPool: adding, logger });
await utils.migrate();

let added = 0;
let done = 0;
const working = pool(lanes + 2);
const runner = await run({
  pgPool: working,
  concurrency: lanes,
  noHandleSignals: true,
  logger,
  taskList: {
    trivial: async () => {
      done += 1;
    },
  },
});

let stopped = false;
async function runLane() {
  while (!stopped) {
    if (added - done >= backlog) {
      await new Promise((resolve) => setTimeout(resolve, 1));
      continue;
    }
    added += 1;
    await utils.addJob("trivial", { number: added });
  }
}

const running = Array.from({ length: lanes }, runLane);
const measured = await measure(() => done);
stopped = true;
await Promise.all(running);
await runner.stop();
await utils.release();
await Promise.all([adding.end(), working.end()]);
console.log(JSON.stringify({ ...measured, total: done }));
process.exit(0);
