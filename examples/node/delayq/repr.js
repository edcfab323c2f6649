// Arguments as Celery writes them for people to read: `celery delayq list`, Flower and the logs show these texts.

const LONGEST = 1024;

/**
 * A value as Python writes it.
 * @param {"list" | "tuple"} [sequence] what an array is; those inside of it are lists
 */
export function pythonRepr(value, sequence = "list") {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "string") return `'${value.replaceAll("'", "\\'")}'`;
  if (Array.isArray(value)) {
    const inner = value.map((item) => pythonRepr(item)).join(", ");
    if (sequence === "list") return `[${inner}]`;
    return value.length === 1 ? `(${inner},)` : `(${inner})`;
  }
  if (typeof value === "object") {
    const pairs = Object.entries(value).map(([name, item]) => `${pythonRepr(name)}: ${pythonRepr(item)}`);
    return `{${pairs.join(", ")}}`;
  }
  return String(value);
}

/** What is too long to be read is cut. */
export const shortened = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 3)}...` : text);
