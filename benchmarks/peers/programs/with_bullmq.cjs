// BullMQ: `put` or `work`. What the orders look like, and where what ran goes, stands in harness.py.
"use strict";

const readline = require("node:readline");
const IORedis = require("ioredis");
const { Queue, Worker } = require("bullmq");

const connection = new IORedis(process.env.PEER_BROKER, { maxRetriesPerRequest: null });
const QUEUE = "peer";

async function put() {
  const queue = new Queue(QUEUE, { connection });
  const payload = "x".repeat(Number(process.env.PEER_PAYLOAD));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [id, due] = line.split(" ");
    if (!id) {
      console.log("done");
      continue;
    }
    // It takes delays of whole milliseconds: up, so that a job is not early by our rounding.
    const delay = Math.max(0, Math.ceil(Number(due) * 1000) - Date.now());
    const options = { jobId: id, delay, removeOnComplete: true, removeOnFail: true };
    await queue.add("job", { id, payload }, options);
  }
  process.exit(0);
}

function work() {
  const records = new IORedis(process.env.PEER_RECORDS);
  const hold = Number(process.env.PEER_HOLD) * 1000;
  const job = async ({ data }) => {
    // Date.now() cuts to whole milliseconds, which would look early.
    const started = (performance.timeOrigin + performance.now()) / 1000;
    if (hold) {
      await new Promise((resolve) => setTimeout(resolve, hold));
    }
    await records.rpush("records", `${data.id} ${started}`);
  };
  const recover = Number(process.env.PEER_RECOVER) * 1000;
  const options = { lockDuration: recover, stalledInterval: recover };
  new Worker(QUEUE, job, { ...options, connection, concurrency: Number(process.env.PEER_CONCURRENCY) });
}

process.argv[2] === "put" ? put() : work();
