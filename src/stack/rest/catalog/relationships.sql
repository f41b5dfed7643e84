-- Foreign keys between tables of the exposed schemas ($1 text[]).
select
  con.conname::text as name,
  n.nspname::text as schema,
  c.relname::text as table_name,
  fn.nspname::text as foreign_schema,
  fc.relname::text as foreign_name,
  (select array_agg(a.attname::text order by k.place)
   from unnest(con.conkey) with ordinality as k (number, place)
   join pg_catalog.pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number) as columns,
  (select array_agg(a.attname::text order by k.place)
   from unnest(con.confkey) with ordinality as k (number, place)
   join pg_catalog.pg_attribute a on a.attrelid = con.confrelid and a.attnum = k.number) as foreign_columns,
  -- The columns are unique as a whole: one row on each side.
  exists (
    select from pg_catalog.pg_constraint u
    where u.conrelid = con.conrelid and u.contype in ('p', 'u')
      and u.conkey @> con.conkey and u.conkey <@ con.conkey) as one_to_one,
  -- The columns are part of the primary key, as in a join table.
  exists (
    select from pg_catalog.pg_constraint u
    where u.conrelid = con.conrelid and u.contype = 'p' and u.conkey @> con.conkey) as in_primary_key
from pg_catalog.pg_constraint con
join pg_catalog.pg_class c on c.oid = con.conrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_class fc on fc.oid = con.confrelid
join pg_catalog.pg_namespace fn on fn.oid = fc.relnamespace
where con.contype = 'f'
  and con.conparentid = 0
  and n.nspname = any ($1)
  and fn.nspname = any ($1)
order by n.nspname, c.relname, con.conname
